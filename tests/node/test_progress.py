import io
import logging

import pytest
from rich.console import Console

from mesh.messages.record import ModelEntry
from mesh.messages.worker import Loading
from node.progress import LoadingProgress


def test_a_terminal_sees_a_bar_until_the_model_is_there() -> None:
    screen = io.StringIO()
    progress = LoadingProgress(Console(file=screen, force_terminal=True, width=100))
    progress.loading("m", Loading(0, 0, "starting"))
    progress.loading("m", Loading(3, 10, "weights"))
    assert "loading m weights" in screen.getvalue()
    assert "3/10" in screen.getvalue()
    progress.changed([ModelEntry(id="m", state="ready")])
    end = screen.getvalue()
    progress.changed([ModelEntry(id="m", state="ready")])
    progress.close()
    assert screen.getvalue() == end
    progress.loading("m", Loading(1, 10, "weights"))
    progress.close()
    assert len(screen.getvalue()) > len(end), "a second load is shown as well"


def test_elsewhere_each_phase_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    screen = io.StringIO()
    progress = LoadingProgress(Console(file=screen))
    for done in range(50):
        progress.loading("m", Loading(done, 50, "weights"))
    progress.loading("m", Loading(0, 0, "warming up"))
    assert [record.message for record in caplog.records] == ["loading m: weights", "loading m: warming up"]
    assert screen.getvalue() == ""
