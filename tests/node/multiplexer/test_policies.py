import msgspec
import pytest

from mesh import plugins as mesh_plugins
from mesh.errors import Misconfigured
from node.multiplexer import plugins
from node.multiplexer.policies import Decision, Knobs, Queue, Scene, cost_aware, fifo, time_slice

KNOBS = Knobs()


def queue(model="b", waiting=1, oldest=5.0, there=4.0, back=4.0):
    return Queue(model=model, waiting=waiting, oldest=oldest, there=there, back=back)


def scene(*queues, **known):
    return Scene(models=("a", "b", "c"), queues=queues or (queue(),), **{"active": "a", **known})


def test_fifo_takes_whoever_waits_longest_at_once() -> None:
    assert fifo(scene(queue("c", oldest=2), queue("b", oldest=1, waiting=9)), KNOBS) == Decision("c")


@pytest.mark.parametrize("policy", [fifo, cost_aware, time_slice], ids=lambda policy: policy.__name__)
def test_an_idle_accelerator_goes_to_whoever_waits_longest(policy) -> None:
    assert policy(scene(queue("c", oldest=0.0), queue("b", oldest=0.0), active=None), KNOBS) == Decision("c")


def test_cost_aware_stays_until_the_work_is_worth_the_way_out_and_back() -> None:
    working = scene(active_for=3, busy_for=3, in_flight=2, served=5)
    assert cost_aware(working, KNOBS) == Decision(None, 5)
    assert cost_aware(msgspec.structs.replace(working, active_for=8, busy_for=8), KNOBS) == Decision("b")


def test_cost_aware_weighs_a_cheap_switch_less() -> None:
    cheap = scene(queue(there=0.5, back=0.5), active_for=1, busy_for=1, in_flight=1, served=1)
    assert cost_aware(cheap, KNOBS) == Decision("b")


def test_a_factor_of_zero_switches_when_the_window_has_passed() -> None:
    knobs = Knobs(amortization_factor=0)
    busy = scene(active_for=0.1, busy_for=0.1, in_flight=1, served=1)
    assert cost_aware(busy, knobs) == Decision("b")
    assert cost_aware(msgspec.structs.replace(busy, queues=(queue(oldest=0.5),)), knobs) == Decision(None, 1.5)


def test_cost_aware_lets_others_join_the_first_waiter() -> None:
    due = scene(queue(oldest=0.5), active_for=100, busy_for=100, in_flight=1, served=9)
    assert cost_aware(due, KNOBS) == Decision(None, 1.5)


def test_cost_aware_leaves_a_silent_model_the_sooner_the_less_it_was_wanted() -> None:
    silent = scene(queue(waiting=20), active_for=2, busy_for=1, idle_for=1, served=2)
    assert cost_aware(silent, KNOBS) == Decision("b")
    popular = msgspec.structs.replace(silent, served=20)
    assert cost_aware(popular, KNOBS) == Decision(None, 7)


def test_patience_ends_however_much_work_there_is_and_goes_to_the_longest_waiting() -> None:
    crowd = queue("c", waiting=50, oldest=3)
    first = queue("b", waiting=1, oldest=16)
    assert cost_aware(scene(first, crowd, active_for=16, busy_for=2, in_flight=1, served=1), KNOBS) == Decision("b")


def test_what_the_switch_took_is_no_wait_for_the_policy() -> None:
    just_ready = scene(queue(oldest=60), active_for=1, busy_for=1, in_flight=1, served=1)
    assert cost_aware(just_ready, KNOBS).model is None


def test_before_patience_ends_the_most_wanted_goes_first() -> None:
    crowd, first = queue("c", waiting=50, oldest=3), queue("b", waiting=1, oldest=4)
    assert cost_aware(scene(first, crowd, active_for=9, busy_for=9, in_flight=1, served=9), KNOBS) == Decision("c")


def test_time_slice_gives_everybody_a_turn_in_the_configured_order() -> None:
    def turn(active, *waiting):
        return time_slice(scene(*(queue(model) for model in waiting), active=active, active_for=8, in_flight=1), KNOBS).model

    assert turn("a", "c", "b") == "b"
    assert turn("b", "a", "c") == "c"
    assert turn("c", "b", "a") == "a"


def test_a_quantum_is_no_shorter_than_the_switch_and_looks_come_in_ticks() -> None:
    assert time_slice(scene(active_for=7.7, in_flight=1), KNOBS) == Decision(None, 0.5)
    assert time_slice(scene(queue(there=0.1, back=0.1), active_for=2, in_flight=1), KNOBS) == Decision("b")
    assert time_slice(scene(active_for=3, idle_for=2.5), KNOBS) == Decision("b")


class Point:
    def __init__(self, policy) -> None:
        self.value = "plugin:policy"
        self.name = "mine"
        self._policy = policy

    def load(self):
        if isinstance(self._policy, Exception):
            raise self._policy
        return self._policy


@pytest.fixture
def install(monkeypatch):
    def install(policy):
        monkeypatch.setattr(mesh_plugins, "entry_points", lambda *, group, name=None: [Point(policy)])

    return install


def test_a_policy_of_others_is_found_by_its_name(install) -> None:
    install(lambda scene, knobs: Decision(scene.queues[-1].model))
    assert "mine" in plugins.policy_names()
    policy = plugins.policy_named("mine")
    assert policy(scene(queue("b"), queue("c")), KNOBS) == Decision("c")


@pytest.mark.parametrize(
    "answer", [None, Decision("nobody"), Decision(None, float("nan")), "b"], ids=["none", "unknown", "nan", "text"]
)
def test_a_policy_that_talks_nonsense_is_passed_over_and_counted(install, answer) -> None:
    install(lambda scene, knobs: answer)
    policy = plugins.policy_named("mine")
    assert policy(scene(), KNOBS) == Decision("b")
    assert policy.failures == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_policy_that_raises_is_passed_over(install, error) -> None:
    def broken(scene, knobs):
        raise error

    install(broken)
    assert plugins.policy_named("mine")(scene(), KNOBS) == Decision("b")


def test_a_policy_that_is_not_there_or_cannot_be_loaded_is_named(install) -> None:
    with pytest.raises(Misconfigured, match="choose one of cost_aware, fifo, time_slice"):
        plugins.policy_named("nothing")
    install(ImportError("no such module"))
    with pytest.raises(Misconfigured, match="cannot be loaded"):
        plugins.policy_named("mine")
    install(5)
    with pytest.raises(Misconfigured, match="no function"):
        plugins.policy_named("mine")
