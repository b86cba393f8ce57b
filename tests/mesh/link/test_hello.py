"""What two peers say first, and what makes a link end there."""

from __future__ import annotations

import struct

import msgspec
import pytest
import trio
import trio.lowlevel

from mesh.errors import Conflict, Denied, MeshError, Unavailable
from mesh.framing import MAX_FRAME, frame
from mesh.identity import Identity
from mesh.link import Link
from mesh.messages.link import (
    Leave,
    Refused,
)
from mesh.messages.record import SealedRecord


async def refusal_of(kit, near, far):
    """What both sides raise when their hellos do not fit."""
    outcomes = {}

    async def run(name, link):
        try:
            await link.run()
        except MeshError as error:
            outcomes[name] = error

    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        nursery.start_soon(run, "near", Link(here, near, dialled=True))
        nursery.start_soon(run, "far", Link(there, far, dialled=False))
    return outcomes


async def test_both_sides_know_each_other(autojump_clock, kit):
    async with kit.links() as pair:
        assert pair.near.peer_id == kit.far.peer_id
        assert pair.near.record.name == "a node"
        assert pair.near.dialled
        assert not pair.far.dialled
        assert pair.far.hello.instance == "one"


async def test_another_mesh_is_refused_on_both_sides(autojump_clock, kit, side):
    outcomes = await refusal_of(kit, side(kit.near), side(kit.far, "elsewhere"))
    for error in outcomes.values():
        assert isinstance(error, Denied)
        assert error.code == "other_mesh"
        assert "'test'" in error.message
        assert "'elsewhere'" in error.message
    assert set(outcomes) == {"near", "far"}


async def test_a_record_of_somebody_else_is_refused(autojump_clock, kit, side, hello):
    stranger = Identity.generate()
    far = msgspec.structs.replace(hello(kit.far), record=hello(stranger).record)
    async with kit.channels() as (here, there):
        await there.send_all(frame(msgspec.msgpack.encode([far])))
        with pytest.raises(Denied) as caught:
            await Link(here, side(kit.near), dialled=True).run()
    assert caught.value.code == "bad_record"


async def test_a_forged_record_is_refused(autojump_clock, kit, side, hello):
    good = hello(kit.far)
    forged = msgspec.structs.replace(good, record=SealedRecord(good.record.payload, bytes(64)))
    async with kit.channels() as (here, there):
        await there.send_all(frame(msgspec.msgpack.encode([forged])))
        with pytest.raises(Denied, match="signature"):
            await Link(here, side(kit.near), dialled=True).run()


async def test_the_owner_may_refuse_and_the_other_side_learns_why(autojump_clock, kit, side):
    def admit(link):
        raise Conflict("two of you", code="same_identity")

    outcomes = {}

    async def far(link):
        try:
            await link.run()
        except Conflict as error:
            outcomes["far"] = error

    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        nursery.start_soon(far, Link(there, side(kit.far), dialled=False))
        with pytest.raises(Conflict):
            await Link(here, side(kit.near, admit=admit), dialled=True).run()
    assert outcomes["far"].code == "same_identity"
    assert "two of you" in outcomes["far"].message


async def test_no_hello_within_the_limit(autojump_clock, kit, side):
    async with kit.channels() as (here, _there):
        started = trio.current_time()
        with pytest.raises(Unavailable, match="did not say hello"):
            await Link(here, side(kit.near), dialled=True).run()
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", MAX_FRAME + 1),
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode([Leave("early")])),
        frame(msgspec.msgpack.encode([{"type": "hello", "mesh": 5}])),
        frame(b"\x91" * 5000),
    ],
)
async def test_garbage_instead_of_a_hello(autojump_clock, kit, side, first):
    async with kit.channels() as (here, there):
        await there.send_all(first)
        with pytest.raises(Unavailable) as caught:
            await Link(here, side(kit.near), dialled=True).run()
    assert caught.value.code == "no_hello"


async def test_the_other_side_hangs_up_before_its_hello(autojump_clock, kit, side):
    async with kit.channels() as (here, there):
        await there.aclose()
        with pytest.raises(Unavailable, match="closed the connection"):
            await Link(here, side(kit.near), dialled=True).run()


async def test_a_refusal_is_cut_to_one_bounded_line(autojump_clock, kit, side):
    async with kit.channels() as (here, there):
        await there.send_all(frame(msgspec.msgpack.encode([Refused("x" * 500, "a\nb\r\n" + "c" * 5000)])))
        with pytest.raises(Denied) as caught:
            await Link(here, side(kit.near), dialled=True).run()
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert len(caught.value.code) == 64
