import trio

from gateway.budget import Budget


def taken(budget: Budget, tries: int) -> int:
    return sum(budget.withdraw() for _ in range(tries))


async def test_it_begins_full_and_is_fed_by_requests(autojump_clock):
    budget = Budget(share=0.25, per_second=0.0, most=10.0)
    assert taken(budget, 100) == 10
    assert budget.refused == 90
    for _ in range(20):
        budget.deposit()
    assert taken(budget, 100) == 5


async def test_it_never_holds_more_than_its_most(autojump_clock):
    budget = Budget(share=1.0, per_second=1.0, most=3.0)
    for _ in range(50):
        budget.deposit()
    await trio.sleep(1000)
    assert taken(budget, 100) == 3


async def test_time_puts_a_little_in(autojump_clock):
    budget = Budget(share=0.0, per_second=2.0, most=10.0)
    taken(budget, 10)
    await trio.sleep(3)
    assert taken(budget, 100) == 6


async def test_under_a_storm_only_the_share_is_given(autojump_clock):
    budget = Budget(share=0.2, per_second=0.0, most=5.0)
    given = 0
    for _ in range(1000):
        budget.deposit()
        given += taken(budget, 3)
    assert given <= 0.2 * 1000 + 5
