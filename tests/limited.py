"""Run a command that must end: `python -m tests.limited SECONDS COMMAND...`.

When the time is up, every process below the command is killed, whatever group it is in, and the last lines of each log
file under the test run's folder (`INFERMESH_TEST_LOGS`) are printed, so that one sees who hung and at what.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

TAIL = 15  # lines of each log that are worth a look


def main(argv: list[str]) -> int:
    """The command's exit code, or 124 when its time ran out."""
    seconds, command = float(argv[0]), argv[1:]
    with tempfile.TemporaryDirectory(prefix="infermesh-test-") as logs:
        child = subprocess.Popen(command, env={**os.environ, "INFERMESH_TEST_LOGS": logs}, start_new_session=True)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"\ntests: not done after {seconds:.0f} s; killing everything", file=sys.stderr)
            show_logs(Path(logs))
            return 124
        finally:
            kill_tree(child.pid)
            child.wait()


def kill_tree(pid: int) -> None:
    """Kill a process and all that descend from it."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def show_logs(folder: Path) -> None:
    """Print the end of every log below a folder."""
    for path in sorted(folder.rglob("*.log")):
        lines = path.read_text(errors="replace").splitlines()[-TAIL:]
        print(f"--- {path.relative_to(folder)}", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
