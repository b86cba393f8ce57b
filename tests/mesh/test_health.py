import pytest

from mesh.health import ENOUGH, LEVELS, RECENT, USABLE, Failures, level


@pytest.mark.parametrize(
    ("states", "conditions", "expected"),
    [
        (["ready"], {}, "healthy"),
        (["asleep"], {}, "healthy"),
        (["ready", "asleep", "loading"], {}, "healthy"),
        (["ready", "failed"], {}, "degraded"),
        (["ready", "loading"], {"died": True}, "degraded"),
        (["ready"], {"failing": True}, "degraded"),
        (["loading"], {}, "initializing"),
        (["loading", "failed"], {}, "initializing"),
        (["loading"], {"died": True}, "unhealthy"),
        (["failed"], {}, "unhealthy"),
        (["failed"], {"failing": True}, "unhealthy"),
        ([], {}, "unknown"),
        (["ready"], {"reachable": False}, "offline"),
        ([], {"reachable": False}, "offline"),
    ],
)
def test_the_level_follows_from_the_states(states, conditions, expected) -> None:
    assert level(states, **conditions) == expected
    assert expected in LEVELS


def test_only_the_two_best_levels_are_asked() -> None:
    assert {"healthy", "degraded"} == USABLE


def test_some_failures_in_a_row_are_failing_until_enough_goes_well() -> None:
    failures = Failures()
    for _ in range(ENOUGH - 1):
        failures.ended(well=False)
        assert not failures.failing, "too few to tell"
    failures.ended(well=False)
    assert failures.failing
    for _ in range(ENOUGH + 1):
        assert failures.failing
        failures.ended(well=True)
    assert not failures.failing


def test_old_failures_are_forgotten() -> None:
    failures = Failures()
    for well in [False] * RECENT + [True] * RECENT:
        failures.ended(well=well)
    assert not failures.failing
