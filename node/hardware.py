"""What this machine offers, without torch: its GPUs where there are some, else the processor and its memory."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from mesh.messages.record import Hardware
from node.gpus import find_gpus, select

if TYPE_CHECKING:
    from collections.abc import Mapping


async def discover(device: str = "auto", environment: Mapping[str, str] | None = None) -> Hardware:
    """The hardware that `device` means to a program with this environment (None = ours). Takes at most some seconds; never fails.

    `device`: `cpu`; `cuda:N` for one GPU; `auto` or `cuda` for the first; `all` for every one that can be seen.
    """
    if device != "cpu" and (gpus := select(await find_gpus(os.environ if environment is None else environment), device)):
        return Hardware(
            device=gpus[0].kind,
            device_name=gpus[0].name,
            device_count=len(gpus),
            memory_bytes=sum(gpu.memory for gpu in gpus),
            cpu_count=cpu_count(),
        )
    return Hardware(
        device="cpu",
        device_name=_processor(),
        device_count=1,
        memory_bytes=int(psutil.virtual_memory().total),
        cpu_count=cpu_count(),
    )


def cpu_count() -> int:
    """Cores that this process may use, which in a container are often fewer than the machine has."""
    with suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
