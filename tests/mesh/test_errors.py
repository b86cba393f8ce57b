"""The kinds of errors: one root, at most ten, each with what a client needs."""

from __future__ import annotations

import pytest

from mesh.errors import KINDS, BadRequest, Denied, MeshError


def test_the_kinds_are_all_there_and_at_most_ten():
    assert set(KINDS.values()) == {MeshError, *MeshError.__subclasses__()}
    assert len(KINDS) <= 10


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_kind_has_a_status_a_type_and_a_code(kind):
    error = kind("text")
    assert 400 <= error.status < 600
    assert error.type
    assert error.code == kind.default_code
    assert str(error) == error.message == "text"


def test_a_status_of_one_error_does_not_change_its_kind():
    assert Denied("no", status=403).status == 403
    assert Denied("no").status == 401


def test_only_what_another_node_may_do_better_is_retriable():
    assert {name for name, kind in KINDS.items() if kind.retriable} == {"Busy", "Unavailable", "BackendFailed", "TimedOut"}
    assert not BadRequest.retriable
