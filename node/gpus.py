"""Which GPUs this machine has and which of them we may use, asked of the vendors' own tools; none of it imports torch.

1. NVIDIA's are asked of `nvidia-smi`, AMD's of `rocm-smi`, an Apple processor is one itself, with all the memory.
2. `CUDA_VISIBLE_DEVICES` (for AMD also `HIP_VISIBLE_DEVICES`) hides devices from every program, so it hides them here: numbers,
   or ids as `nvidia-smi -L` prints them, up to the first that is not there, as CUDA reads it.
3. A tool that is missing, fails or hangs costs a line in the log and at most `TOOL_LIMIT` seconds.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOOL_LIMIT = 5.0
"""Seconds for a tool: a wedged driver makes it hang."""
_NVIDIA = ("nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_FREE = ("nvidia-smi", "--query-gpu=uuid,name,memory.free", "--format=csv,noheader,nounits")
_AMD = ("rocm-smi", "--showproductname", "--showuniqueid", "--showmeminfo", "vram", "--json")
_AMD_NAMES = ("Card Series", "Card series", "Card Model", "Card model")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One of them. `memory` in bytes."""

    kind: Literal["cuda", "rocm", "mps"]
    name: str
    memory: int
    id: str = ""


async def find_gpus(environment: Mapping[str, str]) -> list[Gpu]:
    """Those that a program with this environment sees, in its order. Takes at most some seconds; never fails."""
    if found := nvidia_gpus(await _ask(_NVIDIA)):
        return visible(found, environment.get("CUDA_VISIBLE_DEVICES"))
    if found := amd_gpus(await _ask(_AMD)):
        return visible(found, environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES")))
    return apple_gpus()


async def free_memory(device: str = "auto", environment: Mapping[str, str] | None = None) -> int | None:
    """Bytes that nobody has on the GPU that `device` means, for `all` on every one; None when there is none that tells."""
    environment = os.environ if environment is None else environment
    if found := nvidia_gpus(await _ask(_NVIDIA_FREE)):
        gpus = select(visible(found, environment.get("CUDA_VISIBLE_DEVICES")), device)
    else:
        found = amd_gpus(await _ask(_AMD), free=True)
        gpus = select(visible(found, environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES"))), device)
    return sum(gpu.memory for gpu in gpus) if gpus else None


def select(gpus: list[Gpu], device: str) -> list[Gpu]:
    """Those that `device` means: `all`, `cuda:N`, else the first."""
    if device == "all":
        return gpus
    _, colon, index = device.partition(":")
    if colon and index.isdigit():
        return gpus[int(index) : int(index) + 1]
    return gpus[:1]


def nvidia_gpus(table: str) -> list[Gpu]:
    """From lines `id, name, mebibytes`; lines of another shape are skipped."""
    gpus: list[Gpu] = []
    for line in table.splitlines():
        identity, _, rest = line.partition(",")
        name, _, memory = rest.rpartition(",")
        if name.strip():
            with suppress(ValueError):
                size = int(float(memory) * 1024 * 1024)
                gpus.append(Gpu(kind="cuda", name=name.strip(), memory=size, id=identity.strip()))
    return gpus


def amd_gpus(report: str, *, free: bool = False) -> list[Gpu]:
    """From the JSON of `rocm-smi`: cards by their names, `card0` and so on; with `free`, the memory that nobody has."""
    try:
        cards = msgspec.json.decode(report, type=dict[str, dict[str, Any]]) if report else {}
    except msgspec.MsgspecError:
        return []
    gpus = [_amd_gpu(cards[name], free=free) for name in sorted(cards, key=_number) if name.startswith("card")]
    return [gpu for gpu in gpus if gpu is not None]


def apple_gpus() -> list[Gpu]:
    """The one that an Apple processor is."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return [Gpu(kind="mps", name=platform.processor() or "Apple", memory=int(psutil.virtual_memory().total))]
    return []


def visible(gpus: Sequence[Gpu], setting: str | None) -> list[Gpu]:
    """What a variable leaves of them; None leaves all."""
    if setting is None:
        return list(gpus)
    found: list[Gpu] = []
    for wanted in (part.strip() for part in setting.split(",")):
        gpu = _named(gpus, wanted)
        if gpu is None:
            break
        found.append(gpu)
    return found


def _named(gpus: Sequence[Gpu], wanted: str) -> Gpu | None:
    if wanted.isdecimal():
        return gpus[int(wanted)] if int(wanted) < len(gpus) else None
    return next((gpu for gpu in gpus if wanted and gpu.id.startswith(wanted)), None)


def _amd_gpu(card: Mapping[str, Any], *, free: bool) -> Gpu | None:
    name = next((str(card[key]) for key in _AMD_NAMES if card.get(key)), "AMD GPU")
    with suppress(KeyError, ValueError, TypeError):
        used = int(card["VRAM Total Used Memory (B)"]) if free else 0
        memory = int(card["VRAM Total Memory (B)"]) - used
        return Gpu(kind="rocm", name=name, memory=memory, id=str(card.get("Unique ID", "")))
    return None


def _number(card: str) -> int:
    digits = card.removeprefix("card")
    return int(digits) if digits.isdecimal() else 0


async def _ask(command: Sequence[str]) -> str:
    program = shutil.which(command[0])
    if program is None:
        return ""
    with trio.move_on_after(TOOL_LIMIT):
        try:
            result = await trio.run_process([program, *command[1:]], capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
        except OSError as error:
            logger.warning("cannot run %s: %s", program, error.strerror)
            return ""
        return result.stdout.decode("utf-8", "replace") if result.returncode == 0 else ""
    logger.warning("%s did not answer within %g s; going on without its GPUs", command[0], TOOL_LIMIT)
    return ""
