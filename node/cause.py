"""Why a child died, mined from how it ended and what it printed last."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEMORY = re.compile(r"out of memory|OutOfMemoryError|MemoryError|cannot allocate memory|bad_alloc", re.IGNORECASE)
_LESS = "use a shorter --context, fewer --slots or a smaller model"
_KNOWN = (
    (
        re.compile(r"address already in use|EADDRINUSE|port \d+ is (already )?(in use|taken)", re.IGNORECASE),
        "a port is taken",
        "choose another --port or stop the other program",
    ),
    (
        re.compile(
            r"(CUDA|HIP|NCCL|CUBLAS|cuDNN)[ _](driver )?(error|failure|status|initialization)|cudaError|device-side assert"
            r"|no CUDA-capable device|found no NVIDIA driver|not compiled with CUDA|invalid device ordinal",
            re.IGNORECASE,
        ),
        "the GPU failed",
        "see what nvidia-smi says, and whether driver, CUDA_VISIBLE_DEVICES and --device fit together",
    ),
    (
        re.compile(
            r"unrecogni[sz]ed (argument|option)|(unknown|unexpected|invalid|illegal) (argument|option|flag|choice)|no such option"
            r"|flag provided but not defined|expected (one|at least one) argument",
            re.IGNORECASE,
        ),
        "it does not take a flag or its value",
        "correct its arguments",
    ),
    (
        re.compile(r"ModuleNotFoundError|No module named|cannot open shared object file", re.IGNORECASE),
        "a package is missing",
        "install it in the environment that the command runs in",
    ),
    (
        re.compile(
            r"FileNotFoundError|No such file or directory|ENOENT|(file|path|directory) .*(does not exist|not found)",
            re.IGNORECASE,
        ),
        "a file is missing",
        "correct the path",
    ),
)
"""What is looked for, in this order; what it means; what to do."""
_ERROR = re.compile(r"\b\w*(error|exception|fatal|panic|refused|failed|cannot|not found|denied)\b", re.IGNORECASE)
_ROUTINE = re.compile(r"(INFO|DEBUG)\b")
"""Says what went well, and nothing of a death."""
_LONGEST = 300


def cause_of_death(returncode: int | None, lines: Sequence[str], *, memory_ran_out: bool = False) -> str:
    """One line for people: how the process ended, the likely reason, and what to do where that is known."""
    end = _end(returncode)
    if line := _last(_MEMORY, lines):
        return f"{end}: out of memory ({line}); {_LESS}"
    if returncode == -signal.SIGKILL and memory_ran_out:
        return f"{end} by the kernel: the machine is out of memory; {_LESS}"
    for pattern, meaning, advice in _KNOWN:
        if line := _last(pattern, lines):
            return f"{end}: {meaning} ({line}); {advice}"
    if line := _last(_ERROR, lines) or next((line for line in reversed(lines) if not _ROUTINE.match(line)), None):
        return f"{end}: {line[:_LONGEST]}"
    return f"{end} without a word"


def _end(returncode: int | None) -> str:
    if returncode is None:
        return "did not start"
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    found = (line for line in reversed(lines) if pattern.search(line))
    line = next(found, None)
    return line.strip()[:_LONGEST] if line else None
