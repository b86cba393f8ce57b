"""The file of peers to come back through: bounded, and never in the way."""

from __future__ import annotations

import json
import logging

import pytest

from mesh.discovery import seeds as module
from mesh.discovery.seeds import FILE, Seeds
from mesh.identity import Identity


def peer() -> tuple[str, list[str]]:
    peer_id = Identity.generate().peer_id
    return peer_id, [f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id}" for port in (1, 2)]


def test_they_are_there_after_a_restart_the_last_seen_first(tmp_path):
    old, new = peer(), peer()
    Seeds(tmp_path / FILE, "ours").see(dict([old]))
    Seeds(tmp_path / FILE, "ours").see(dict([new]))
    found = Seeds(tmp_path / FILE, "ours").peers
    assert list(found.items()) == [new, old]


def test_those_of_another_mesh_do_not_count(tmp_path):
    Seeds(tmp_path / FILE, "ours").see(dict([peer()]))
    assert Seeds(tmp_path / FILE, "theirs").peers == {}


def test_it_is_bounded_and_written_only_for_news(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SEEDS", 3)
    seeds = Seeds(tmp_path / FILE, "ours")
    last = [peer() for _ in range(3)]
    for one in [peer(), peer(), *last]:
        seeds.see(dict([one]))
    assert set(seeds.peers) == set(dict(last))
    seeds.see({last[0][0]: [f"/ip4/127.0.0.1/tcp/{port}/p2p/{last[0][0]}" for port in range(1, 40)]})
    assert len(seeds.peers[last[0][0]]) == module.MAX_ADDRESSES
    (tmp_path / FILE).unlink()
    seeds.see({last[0][0]: seeds.peers[last[0][0]][::-1]})
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mesh": "ours"}', '{"mesh": "ours", "peers": {"x": "y"}}'])
def test_a_broken_file_is_said_and_replaced(tmp_path, content, caplog):
    (tmp_path / FILE).write_text(content)
    seeds = Seeds(tmp_path / FILE, "ours")
    assert seeds.peers == {}
    assert "cannot be read" in caplog.text
    seeds.see(dict([peer()]))
    assert len(Seeds(tmp_path / FILE, "ours").peers) == 1


def test_addresses_of_others_in_the_file_are_ignored(tmp_path):
    good, bad = peer(), peer()
    (tmp_path / FILE).write_text(json.dumps({"mesh": "ours", "peers": {good[0]: good[1], bad[0]: good[1], "x": ["y"]}}))
    assert set(Seeds(tmp_path / FILE, "ours").peers) == {good[0]}


def test_a_folder_that_takes_nothing_is_said_once(tmp_path, caplog):
    seeds = Seeds(tmp_path / "missing" / FILE, "ours")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            seeds.see(dict([peer()]))
    assert caplog.text.count("cannot be kept") == 1
    assert len(seeds.peers) == 3
