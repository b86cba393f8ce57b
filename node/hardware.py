"""What this machine offers, without torch: `nvidia-smi` where there is one, else the processor and its memory."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil ships no types
import trio

from mesh.messages.record import Hardware

_SMI_LIMIT = 5.0
"""Seconds for nvidia-smi: a wedged driver makes it hang."""

logger = logging.getLogger(__name__)


async def discover(device: str = "auto") -> Hardware:
    """The hardware that `device` (auto, cpu, cuda, cuda:N) means here. Takes at most some seconds; never fails."""
    if device != "cpu":
        gpus = _select(parse_gpus(await _ask_nvidia_smi()), device)
        if gpus:
            return Hardware(
                device="cuda",
                device_name=gpus[0][0],
                device_count=len(gpus),
                memory_bytes=sum(memory for _, memory in gpus),
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


def parse_gpus(table: str) -> list[tuple[str, int]]:
    """(name, bytes) of each line `name, mebibytes`; lines of another shape are skipped."""
    gpus: list[tuple[str, int]] = []
    for line in table.splitlines():
        name, _, memory = line.rpartition(",")
        if name.strip():
            with suppress(ValueError):
                gpus.append((name.strip(), int(float(memory) * 1024 * 1024)))
    return gpus


def _select(gpus: list[tuple[str, int]], device: str) -> list[tuple[str, int]]:
    _, colon, index = device.partition(":")
    if colon and index.isdigit():
        return gpus[int(index) : int(index) + 1]
    return gpus[:1]


async def _ask_nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    with trio.move_on_after(_SMI_LIMIT):
        try:
            result = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
        except OSError as error:
            logger.warning("cannot run %s: %s", program, error.strerror)
            return ""
        return result.stdout.decode("utf-8", "replace") if result.returncode == 0 else ""
    logger.warning("nvidia-smi did not answer within %g s; going on without a GPU", _SMI_LIMIT)
    return ""


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
