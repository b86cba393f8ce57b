"""Amounts of memory as people write them, and how much of it a multiplexer may use."""

from __future__ import annotations

import re

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from node.gpus import free_memory

ONE = "one"
FREE = "free"

_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT])(i?)B", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes from "18GiB", "18.5 GB" or "512 MiB". Raises ValueError, which says how to write it."""
    match = _SIZE.fullmatch(text.strip())
    size = float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]] if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is not an amount of memory; write it as 18GiB or 512MiB")
    return int(size)


def check_size(text: str) -> None:
    """Raise ValueError unless it is an amount of memory, or nothing."""
    if text:
        parse_size(text)


def check_budget(text: str) -> None:
    """Raise ValueError unless it is a budget."""
    if text not in (ONE, FREE):
        try:
            parse_size(text)
        except ValueError as error:
            raise ValueError(f"{error}, or give {ONE} or {FREE}") from None


async def budget(text: str, device: str = "auto", *, taken: int = 0) -> int | None:
    """Bytes; None = one model at a time. Takes some seconds.

    `free` is what the accelerator has left now, else this machine, with what our own models have `taken` of it already.
    """
    if text == ONE:
        return None
    if text != FREE:
        return parse_size(text)
    free = await free_on(device)
    return taken + (int(psutil.virtual_memory().available) if free is None else free)


async def free_on(device: str) -> int | None:
    """Bytes that the accelerator has left; None where none tells, as on the processor."""
    return None if device == "cpu" else await free_memory(device)
