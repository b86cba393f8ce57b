"""One fault, from the requests before it to the mesh that is whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.run import one_fault
from tests.chaos.shards import Shard
from tests.chaos.stage import Plan, made_stage

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def test_a_node_is_killed_and_no_client_loses_a_token(tmp_path: Path) -> None:
    async with made_stage(Plan(nodes=2), tmp_path) as stage:
        before = {seat.pid for seat in stage.nodes}
        peers = [seat.peer_id for seat in stage.nodes]
        result = await one_fault(stage, Shard(tmp_path, "node-kill", seed=1, faults=1), 0)
        await stage.whole()
    assert result.wrong == []
    assert (result.requests, result.tokens) == (8, 1600)
    assert result.gaps, "some stream must have run on the node that was killed"
    assert len({seat.pid for seat in stage.nodes} - before) == 1
    assert [seat.peer_id for seat in stage.nodes] == peers
