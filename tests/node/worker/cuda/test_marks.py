"""A mark stays when its process ends in the middle, and only then says anything."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from node.worker.cuda.marks import Marks

if TYPE_CHECKING:
    from pathlib import Path

TRYING = """
import sys
from pathlib import Path
from node.worker.cuda.marks import Marks

with Marks(Path(sys.argv[1]), "torch", "GPU").trying("varlen"):
    print("trying", flush=True)
    sys.stdin.readline()
"""


def trying(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", TRYING, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "trying\n"
    return child


def test_a_process_that_is_killed_in_the_middle_leaves_a_mark(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    marks = Marks(folder, "torch", "GPU")
    assert marks.left("varlen") is None
    with trying(folder) as child:
        assert list(folder.glob("varlen-*"))
        # While it lives it may still succeed.
        assert marks.left("varlen") is None
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    left = marks.left("varlen")
    assert left is not None
    assert left.read_text() == "varlen\ntorch\nGPU\n"
    assert marks.left("graphs") is Marks(folder, "torch", "another GPU").left("varlen") is None
    left.unlink()
    assert marks.left("varlen") is None


def test_a_trial_that_ends_leaves_nothing(tmp_path: Path) -> None:
    with trying(tmp_path) as child:
        child.communicate("\n", 30)
    assert child.returncode == 0
    assert not list(tmp_path.iterdir())


def test_an_error_that_nobody_took_leaves_a_mark(tmp_path: Path) -> None:
    marks = Marks(tmp_path, "torch")
    with pytest.raises(RuntimeError), marks.trying("graphs"):
        raise RuntimeError("the device is broken")
    assert marks.left("graphs") is not None


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), Marks(tmp_path / "file" / "cuda").trying("varlen"):
        pass
