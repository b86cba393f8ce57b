"""Shared libraries made from the C sources beside this file.

1. They are compiled when they are first needed, for the processor at hand, and kept in the user's cache folder under a digest of
   all that decides what comes out. Several workers may do so at once: a library appears whole.
2. What is loaded runs in this process: a folder that is another's, or that others may write to, is not used.
3. No compiler, no such folder, an error while compiling: `Unavailable` with the reason, and whoever asked goes on without.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from node.worker.folders import cache_folder

_logger = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fopenmp")
ORDER = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
"""Sums may be taken in any order; NaN and infinity stay what they are."""
WIDE = ("-mprefer-vector-width=512",)
"""On x86: the widest registers that there are."""
PATIENCE = 120.0
"""Seconds that compiling may take."""
SWITCH = "INFERMESH_NATIVE"
"""Set to 0, nothing is compiled."""


class Unavailable(Exception):
    """There is no such library on this machine."""


def library(name: str, *definitions: str) -> ctypes.CDLL:
    """The library of `name`.c, compiled with these definitions. Raises Unavailable."""
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0 is set")
    source = Path(__file__).with_name(f"{name}.c")
    width = WIDE if platform.machine() in {"x86_64", "AMD64"} else ()
    command = [*_compiler(), *FLAGS, *width, *ORDER, *(f"-D{each}" for each in definitions)]
    try:
        kept = _folder() / f"{name}-{_digest(source, command)}.so"
        if not kept.exists():
            _compile(source, command, kept)
        return _opened(kept)
    # RuntimeError: a user without a home folder.
    except (OSError, RuntimeError) as error:
        raise Unavailable(str(error)) from error


def _opened(kept: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(kept))
    except OSError:
        # Torn, when the machine lost its power: the next worker makes another.
        kept.unlink()
        raise


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(chosen[0]) is None:
        raise Unavailable(f"there is no C compiler ({chosen[0]})")
    return chosen


def _folder() -> Path:
    folder = cache_folder() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise Unavailable(f"{folder} can be written by others; make it yours alone (chmod 700)")
    return folder


def _digest(source: Path, command: list[str]) -> str:
    compiler = Path(shutil.which(command[0]) or command[0]).resolve()
    sources = [each.read_text() for each in sorted(source.parent.glob("*.[ch]"))]
    parts = (*sources, *command, str(compiler), str(compiler.stat().st_mtime_ns), platform.machine(), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the processor can do: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _compile(source: Path, command: list[str], kept: Path) -> None:
    number, path = tempfile.mkstemp(dir=kept.parent)
    os.close(number)
    draft = Path(path)
    _logger.info("compiling %s for this processor", source.name)
    try:
        code, errors = _run([*command, str(source), "-o", str(draft), "-lm"])
        if code:
            raise Unavailable(f"{command[0]} cannot compile {source.name}: {_last(errors)}")
        draft.replace(kept)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took more than {PATIENCE:.0f} s for {source.name}") from error
    finally:
        draft.unlink(missing_ok=True)


def _run(command: list[str]) -> tuple[int, str]:
    """The exit status, and what it complained about. Raises TimeoutExpired."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        process_group=0,
    ) as running:  # fmt: skip
        try:
            _, errors = running.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            # A compiler is several processes, and each of them holds the pipe open.
            os.killpg(running.pid, signal.SIGKILL)
            raise
    return running.returncode, errors


def _last(text: str) -> str:
    """The first error that a compiler named, or its last words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "it does not say why")
