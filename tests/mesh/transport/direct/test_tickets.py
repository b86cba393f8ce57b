"""One-time tickets."""

from __future__ import annotations

import pytest

from mesh.identity import PeerId
from mesh.transport.direct.tickets import MAX_TICKETS, TICKET_LIFE, TICKET_SIZE, Tickets

A, B = PeerId("a"), PeerId("b")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tickets(clock):
    return Tickets(clock=clock)


def test_a_ticket_is_good_once_and_names_its_peer(tickets):
    first, second = tickets.issue(A), tickets.issue(B)
    assert len(first) == TICKET_SIZE
    assert first != second
    assert (tickets.redeem(second), tickets.redeem(first)) == (B, A)
    assert (tickets.redeem(second), tickets.redeem(first)) == (None, None)


def test_nobody_made_this_one(tickets):
    tickets.issue(A)
    assert tickets.redeem(bytes(TICKET_SIZE)) is None
    assert len(tickets) == 1


def test_a_ticket_expires(tickets, clock):
    late, timely = tickets.issue(A), tickets.issue(B)
    clock.now = TICKET_LIFE - 0.001
    assert tickets.redeem(timely) == B
    clock.now = TICKET_LIFE
    assert tickets.redeem(late) is None
    assert len(tickets) == 0


def test_asking_again_replaces_the_ticket(tickets):
    old, new = tickets.issue(A), tickets.issue(A)
    assert len(tickets) == 1
    assert tickets.redeem(old) is None
    assert tickets.redeem(new) == A


def test_the_table_is_bounded_and_refills_as_tickets_expire(tickets, clock):
    one = tickets.issue(PeerId("0"))
    clock.now = 1.0
    assert all(tickets.issue(PeerId(str(number))) for number in range(1, MAX_TICKETS))
    assert tickets.issue(A) is None
    assert len(tickets) == MAX_TICKETS
    again = tickets.issue(PeerId("1"))
    assert again is not None, "whoever has one may still replace it"
    clock.now = TICKET_LIFE
    assert tickets.issue(A) is not None
    assert len(tickets) == MAX_TICKETS
    assert tickets.redeem(one) is None
