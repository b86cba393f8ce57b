from __future__ import annotations

import pytest

from mesh.client.choice import Offer, best_first
from mesh.identity import PeerId


def order(**offers: dict[str, object]) -> list[str]:
    return [offer.peer_id for offer in best_first(Offer(peer_id=PeerId(name), **fields) for name, fields in offers.items())]


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ({"a": {"state": "asleep"}, "b": {"busy": 9}}, ["b", "a"]),
        ({"a": {"busy": 4, "slots": 4, "rtt": 0.001}, "b": {"busy": 3, "slots": 4, "rtt": 0.5}}, ["b", "a"]),
        ({"a": {"rtt": 0.2}, "b": {"rtt": 0.02}}, ["b", "a"]),
        ({"a": {"rtt": None}, "b": {"rtt": 0.5}}, ["b", "a"]),
        ({"a": {"busy": 2, "slots": 4, "rtt": 0.001}, "b": {"busy": 1, "slots": 4, "rtt": 0.002}}, ["b", "a"]),
        ({"b": {}, "a": {}}, ["a", "b"]),
        ({"a": {"slots": 0, "busy": 1}, "b": {"slots": 0}}, ["b", "a"]),
    ],
)
def test_who_is_asked_first(offers, expected):
    assert order(**offers) == expected
