from collections import Counter

import pytest

from gateway.waiting import FairLine, FullLine, Place
from mesh.errors import Busy


def line_of(*places: Place, limit: int = 100, tenant_limit: int = 100) -> FairLine:
    line = FairLine(limit=limit, tenant_limit=tenant_limit)
    for place in places:
        line.push(place)
    return line


def drained(line: FairLine) -> list[Place]:
    return [line.pop() for _ in range(len(line))]


def test_one_tenant_is_served_as_it_came():
    places = [Place() for _ in range(5)]
    assert drained(line_of(*places)) == places


def test_a_tenant_with_many_waiting_does_not_hold_up_one_with_few():
    crowd, few = [Place(tenant="crowd") for _ in range(20)], [Place(tenant="few") for _ in range(3)]
    order = [place.tenant for place in drained(line_of(*crowd, *few))]
    assert order[:6].count("few") == 3


def test_three_tenants_get_equal_shares_of_work_whatever_their_requests_cost():
    costs = {"small": 1.0, "middle": 3.0, "large": 9.0}
    line = line_of(*(Place(tenant=tenant, cost=cost) for tenant, cost in costs.items() for _ in range(100)), limit=1000)
    work: Counter[str] = Counter()
    while sum(work.values()) < 240:
        place = line.pop()
        work[place.tenant] += int(place.cost)
    assert max(work.values()) - min(work.values()) <= 2 * max(costs.values())


def test_who_comes_late_is_not_paid_back():
    line = line_of(*(Place(tenant="early") for _ in range(50)))
    for _ in range(20):
        line.pop()
    for _ in range(20):
        line.push(Place(tenant="late"))
    shares = Counter(line.pop().tenant for _ in range(20))
    assert 9 <= shares["late"] <= 11


def test_who_leaves_and_comes_back_does_not_get_a_second_share():
    line = line_of(*(Place(tenant="steady") for _ in range(50)))
    served: Counter[str] = Counter()
    for _ in range(40):
        line.push(Place(tenant="in and out"))
        served[line.pop().tenant] += 1
    assert 18 <= served["in and out"] <= 22


def test_a_priority_counts_within_its_tenant_alone():
    low, high = Place(tenant="a"), Place(tenant="a", priority=9)
    others = [Place(tenant="b") for _ in range(3)]
    order = drained(line_of(low, *others, high))
    assert order.index(high) < order.index(low)
    assert order.index(others[0]) <= 1


def test_equal_priorities_keep_their_order():
    places = [Place(priority=number % 2) for number in range(6)]
    assert drained(line_of(*places)) == [places[1], places[3], places[5], places[0], places[2], places[4]]


def test_who_leaves_is_not_called():
    places = [Place() for _ in range(3)]
    line = line_of(*places)
    line.remove(places[1])
    assert len(line) == 2
    assert drained(line) == [places[0], places[2]]


def test_a_tenant_has_a_bound_of_its_own():
    line = line_of(*(Place(tenant="a") for _ in range(3)), tenant_limit=3)
    with pytest.raises(FullLine):
        line.push(Place(tenant="a"))
    assert line.push(Place(tenant="b")) is None


def test_a_full_line_makes_room_for_a_tenant_with_less():
    places = [Place(tenant="a") for _ in range(4)]
    line = line_of(*places, limit=4)
    assert line.push(Place(tenant="b")) is places[3]
    assert line.push(Place(tenant="b")) is places[2]
    # Now both have two: nobody has to give way any more.
    with pytest.raises(FullLine):
        line.push(Place(tenant="b"))
    with pytest.raises(FullLine):
        line.push(Place(tenant="a"))
    assert len(line) == 4


def test_a_higher_priority_takes_the_place_of_its_own_tenants_lowest():
    places = [Place(priority=1) for _ in range(3)]
    line = line_of(*places, tenant_limit=3)
    with pytest.raises(FullLine):
        line.push(Place(priority=1))
    assert line.push(Place(priority=2)) is places[2]


def test_a_line_of_no_length_takes_nobody():
    with pytest.raises(FullLine):
        FairLine(limit=0, tenant_limit=0).push(Place())
    with pytest.raises(FullLine):
        FairLine(limit=0, tenant_limit=5).push(Place())


def test_ahead_counts_what_a_fair_line_would_call_first():
    line = line_of(*(Place(tenant="a") for _ in range(10)), Place(tenant="b"))
    assert line.ahead("a") == 10 + 1
    assert line.ahead("b") == 2 + 1
    assert line.ahead("c") == 1 + 1


def test_tags_of_tenants_that_went_are_forgotten():
    line = FairLine(limit=4, tenant_limit=4)
    line.push(Place(tenant="stays", cost=0.001))
    for number in range(100):
        line.push(Place(tenant=f"passes-{number}", cost=0.001))
        line.push(Place(tenant="stays", cost=0.001))
        line.pop()
        line.pop()
    assert len(line._tags) <= 2 * 4 + 1


def test_a_refused_place_is_woken():
    place = Place()
    place.refuse(Busy("full"))
    assert place.called.is_set()
    assert place.state == "gone"
