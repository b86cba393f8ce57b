"""Which model a name means, and which names were announced lately.

1. An exact id beats an alias; an alias of two models is a conflict that names both.
2. A name announced in the last 24 hours is known, even when nobody serves it now: "come back later", not "no such model".
3. At most `MAX_REMEMBERED` names are kept, the ones seen last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.errors import Conflict
from mesh.openai.errors import model_not_found

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.record import ModelEntry
    from mesh.registry import Registry, RegistryEvent

REMEMBER_SECONDS = 24 * 3600.0
MAX_REMEMBERED = 1000


class KnownModels:
    """The names of models over all nodes of the registry, and those of the last 24 hours."""

    def __init__(self, registry: Registry, *, limit: int = MAX_REMEMBERED) -> None:
        self._registry = registry
        self._limit = limit
        self._seen: dict[str, tuple[str, float]] = {}
        self.missing: Callable[[str], None] = lambda _name: None
        """Told of each name that somebody asks for and nobody announces now. Must not block."""
        registry.subscribe(self._listen)
        for view in registry.peers.values():
            for entry in view.record.models:
                self._remember(entry)

    def resolve(self, name: str) -> str:
        """The id of the model that `name` means. Raises NotFound when nobody knows it, Conflict when it means two."""
        targets = self._targets(name)
        if len(targets) > 1:
            both = " and ".join(sorted(targets))
            raise Conflict(
                f"the name {name!r} means {both}; ask for one of them by its id", code="model_ambiguous", param="model"
            )
        return targets.pop() if targets else self._remembered(name)

    def _targets(self, name: str) -> set[str]:
        announced = self._registry.announced
        return {name} if name in announced.ids else announced.meant_by(name)

    def _remembered(self, name: str) -> str:
        self.missing(name)
        model, seen_at = self._seen.get(name, (name, -REMEMBER_SECONDS))
        if name not in self._seen or trio.current_time() - seen_at > REMEMBER_SECONDS:
            raise model_not_found(name, set(self._registry.announced.ids))
        return model

    def _listen(self, event: RegistryEvent) -> None:
        for entry in event.peer.record.models:
            self._remember(entry)

    def _remember(self, entry: ModelEntry) -> None:
        now = trio.current_time()
        for name in (*entry.aliases, entry.id):
            self._seen.pop(name, None)
            self._seen[name] = (entry.id, now)
        while len(self._seen) > self._limit:
            del self._seen[next(iter(self._seen))]
