import pytest

from gateway.course import TABLE, Course, State, Step

ENDS = {"done", "failed", "cancelled"}


def reached(start: State) -> set[State]:
    found: set[State] = {start}
    while True:
        more = {leads for state in found for leads in TABLE[state].values()} - found
        if not more:
            return found
        found |= more


def test_every_state_can_be_reached_and_every_one_can_end():
    assert reached("choosing") == set(TABLE)
    for state in TABLE:
        assert ENDS & reached(state)


def test_nothing_leaves_an_end_and_everything_else_can_fail_or_be_cancelled():
    for state, steps in TABLE.items():
        assert bool(steps) == (state not in ENDS)
        assert state in ENDS or (steps["gave_up"], steps["client_left"]) == ("failed", "cancelled")


def test_an_answer_ends_only_after_it_began():
    assert {state for state, steps in TABLE.items() if "ended" in steps} == {"streaming"}


def follow(*steps: Step) -> Course:
    course = Course()
    for step in steps:
        course.take(step)
    return course


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        (("asked", "accepted", "answered", "ended"), "done"),
        (("asked", "answered", "ended"), "done"),
        (("asked", "accepted", "start_over", "asked", "answered", "go_on", "asked", "answered", "ended"), "done"),
        (("asked", "accepted", "hedged", "asked", "accepted", "answered", "ended"), "done"),
        (("start_over", "asked", "gave_up"), "failed"),
        (("client_left",), "cancelled"),
    ],
)
def test_ways_through(steps, state):
    course = follow(*steps)
    assert (course.state, course.over) == (state, True)


@pytest.mark.parametrize("steps", [("answered",), ("asked", "ended"), ("gave_up", "asked"), ("asked", "answered", "hedged")])
def test_what_the_table_does_not_have_is_a_mistake_of_ours(steps):
    with pytest.raises(RuntimeError, match="cannot take the step"):
        follow(*steps)
