"""Who announces which model: found by name without looking at everybody.

1. A view is removed before its offers change and added again after it.
2. Empty entries are dropped, so names that nobody announces any more take no memory.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from mesh.identity import PeerId
    from mesh.peer_view import PeerView


class ModelIndex:
    """Of some views, by what their records offer."""

    def __init__(self) -> None:
        self._announcers: dict[str, dict[PeerId, PeerView]] = {}
        self._meant: dict[str, Counter[str]] = {}
        self._bare: dict[PeerId, PeerView] = {}
        self.names = 0
        """Ids and aliases of all views together: what the index takes in memory."""

    @property
    def ids(self) -> Collection[str]:
        """The ids of all models."""
        return self._announcers.keys()

    @property
    def bare(self) -> Collection[PeerView]:
        """Those that serve models and have none that works: they may be about to."""
        return self._bare.values()

    def announcers(self, model: str) -> Collection[PeerView]:
        """Who announces a model by its id."""
        return self._announcers.get(model, {}).values()

    def meant_by(self, alias: str) -> set[str]:
        """The ids of the models that have this alias somewhere."""
        return set(self._meant.get(alias, ()))

    def called(self, alias: str) -> list[PeerView]:
        """Who announces a model by this alias, each once."""
        views = {view.peer_id: view for model in self._meant.get(alias, ()) for view in self.announcers(model)}
        return [view for view in views.values() if any(alias in offer.aliases for offer in view.offers)]

    def add(self, view: PeerView) -> None:
        """Find it by its offers from now on."""
        self.names += _names(view)
        for offer in view.offers:
            self._announcers.setdefault(offer.id, {})[view.peer_id] = view
            for alias in offer.aliases:
                self._meant.setdefault(alias, Counter())[offer.id] += 1
        if view.serves and all(offer.state == "failed" for offer in view.offers):
            self._bare[view.peer_id] = view

    def remove(self, view: PeerView) -> None:
        """Take back what `add` did, with the same offers."""
        self.names -= _names(view)
        self._bare.pop(view.peer_id, None)
        for offer in view.offers:
            announcers = self._announcers.get(offer.id, {})
            announcers.pop(view.peer_id, None)
            if not announcers:
                self._announcers.pop(offer.id, None)
            for alias in offer.aliases:
                self._mean_less(alias, offer.id)

    def _mean_less(self, alias: str, model: str) -> None:
        meant = self._meant[alias]
        meant[model] -= 1
        if not meant[model]:
            del meant[model]
        if not meant:
            del self._meant[alias]


def _names(view: PeerView) -> int:
    return sum(1 + len(offer.aliases) for offer in view.offers)
