"""How far loading is: a bar where people look at stderr, one log line per phase elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.record import ModelEntry
    from mesh.messages.worker import Loading

logger = logging.getLogger(__name__)


class LoadingProgress:
    """Hears what the workers tell while they load, and when they have ended."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._phases: dict[str, str] = {}

    def loading(self, model: str, loading: Loading) -> None:
        """One message of one worker."""
        if self._console.is_terminal:
            self._draw(model, loading)
        elif self._phases.get(model) != loading.phase:
            self._phases[model] = loading.phase
            logger.info("loading %s: %s", model, loading.phase or "weights")

    def changed(self, entries: Sequence[ModelEntry]) -> None:
        """Take away the bars of models that load no longer."""
        for entry in entries:
            if entry.state != "loading":
                self._phases.pop(entry.id, None)
                self._remove(entry.id)
        if self._bar is not None and not self._tasks:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        bar, self._bar = self._bar, None
        self._tasks.clear()
        self._phases.clear()
        if bar is not None:
            bar.stop()

    def _draw(self, model: str, loading: Loading) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            # No refresh thread: it would live beside trio; a message is the moment to draw.
            self._bar = Progress(*columns, console=self._console, transient=True, auto_refresh=False)
            self._bar.start()
        if self._phases.get(model) != loading.phase:
            self._phases[model] = loading.phase
            self._remove(model)
            # A bar of its own for each phase: some cannot be counted, and a total once given cannot be taken away.
            description = f"loading {model} {loading.phase}".rstrip()
            self._tasks[model] = self._bar.add_task(description, total=loading.total or None)
        self._bar.update(self._tasks[model], completed=loading.done, refresh=True)

    def _remove(self, model: str) -> None:
        task = self._tasks.pop(model, None)
        if task is not None and self._bar is not None:
            self._bar.remove_task(task)
