"""Errors to `Fail` and back: nothing a caller decides on may get lost on the way."""

from __future__ import annotations

import msgspec
import pytest

from mesh.errors import KINDS, Busy, MeshError
from mesh.messages.inference import Event, Fail
from mesh.service import error_of, fail_of


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_survives_the_wire(kind):
    error = kind("what happened; what to do", code="special", param="$.model", status=418, retry_after=1.5)
    wire = msgspec.msgpack.encode(fail_of(error, running=3, waiting=4))
    fail = msgspec.msgpack.decode(wire, type=Event)
    back = error_of(fail)
    assert type(back) is kind
    assert (back.message, back.code, back.param, back.status, back.retry_after) == (
        "what happened; what to do", "special", "$.model", 418, 1.5,
    )  # fmt: skip
    assert (fail.running, fail.waiting) == (3, 4)


def test_defaults_of_a_kind_survive_too():
    back = error_of(fail_of(Busy("full")))
    assert (back.code, back.status, back.retry_after, back.retriable) == ("busy", 429, None, True)


def test_an_unknown_kind_is_the_root_and_never_retried():
    back = error_of(Fail(kind="Haunted", message="boo", code="ghost", status=599))
    assert type(back) is MeshError
    assert back.status == 599
    assert not back.retriable
