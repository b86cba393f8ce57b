import pytest

from mesh.messages.worker import Alive, EngineLoad, EngineStats, Loading, Ready, Step
from node.liveness import Liveness, Patience

LOOK_EVERY = 0.25

READY = Ready(
    context_length=1,
    vocabulary=1,
    parameters=1,
    slots=1,
    device="cpu",
    device_name="",
    device_memory=1,
    dtype="",
    weights_digest="",
    numerics="",
    architecture="",
)


class Watch:
    """A liveness on a clock of its own, looked at as a backend does."""

    def __init__(self, **patience: float) -> None:
        self.now = 0.0
        self.computes = False
        self.asked = 0
        self.liveness = Liveness(Patience(**patience), 0.0)

    def step(self, number: int, *, running: int = 1, rate: float = 10.0) -> None:
        self.liveness.hear(Step(EngineLoad(number, running, 0, 4, rate), []), self.now)

    def alive(self, number: int, *, running: int = 0, busy: float = 0.0) -> None:
        told = Alive(step=number, running=running, waiting=0, busy_seconds=busy, stats=EngineStats())
        self.liveness.hear(told, self.now)

    def hear(self, message) -> None:
        self.liveness.hear(message, self.now)

    def pass_(self, seconds: float, pulse=None) -> str | None:
        """Let time pass; the first complaint. `pulse` is done every second."""
        for tick in range(round(seconds / LOOK_EVERY)):
            self.now += LOOK_EVERY
            if pulse and tick % 4 == 3:
                pulse()
            if problem := self.liveness.look(self.now, self._asked):
                return problem
        return None

    def _asked(self) -> bool:
        self.asked += 1
        return self.computes


@pytest.fixture
def watch() -> Watch:
    watch = Watch()
    watch.hear(READY)
    return watch


def test_a_worker_without_work_is_well_while_it_speaks(watch) -> None:
    assert watch.pass_(100, lambda: watch.alive(0)) is None


def test_an_idle_worker_that_falls_silent_hangs(watch) -> None:
    watch.alive(0)
    assert watch.pass_(3) is None
    assert watch.pass_(1) == "it hangs: nothing was heard of it for 3.2 s, and nothing is computed"


def test_one_that_falls_silent_before_its_first_word_hangs_too(watch) -> None:
    assert watch.pass_(3) is None
    assert "nothing was heard of it" in watch.pass_(1)


def test_a_step_that_does_not_end_and_computes_nothing_is_late_after_the_least(watch) -> None:
    watch.step(7)
    assert watch.pass_(2, lambda: watch.alive(7, running=1, busy=1)) is None
    assert watch.pass_(1, lambda: watch.alive(7, running=1, busy=2)).startswith("it hangs: step 7 has not ended for 2.2")


def test_steps_that_are_always_slow_are_waited_for_three_times_as_long(watch) -> None:
    watch.computes = True
    for number in range(20):
        watch.step(number)
        watch.pass_(4)
    assert watch.liveness.limit == 12.0
    watch.step(20)
    watch.computes = False
    assert watch.pass_(12, lambda: watch.alive(20, running=1, busy=1)) is None
    assert "step 20" in watch.pass_(1, lambda: watch.alive(20, running=1, busy=1))


def test_one_slow_step_among_many_does_not_change_the_limit(watch) -> None:
    for number in range(300):
        watch.step(number)
        watch.now += 1.5 if number == 7 else 0.1
    assert watch.liveness.limit == 2.0


def test_the_time_without_work_is_no_step(watch) -> None:
    watch.step(1, running=0)
    assert watch.pass_(100, lambda: watch.alive(1)) is None
    watch.step(2)
    assert watch.liveness.limit == 2.0


def test_a_slow_step_is_a_step_as_long_as_it_computes(watch) -> None:
    watch.step(1)
    watch.computes = True
    assert watch.pass_(59.75) is None
    assert watch.pass_(1) == "it computes in circles: step 1 has not ended for 60 s"


def test_the_slowest_step_so_far_is_what_a_computing_one_is_measured_by(watch) -> None:
    watch.computes = True
    watch.step(1)
    assert watch.pass_(50) is None
    watch.step(2)
    assert watch.pass_(149) is None
    assert "circles" in watch.pass_(2)


def test_before_anything_was_measured_a_step_may_compute_for_longer(watch) -> None:
    watch.computes = True
    watch.step(1, rate=0)
    assert watch.pass_(599) is None
    assert "circles" in watch.pass_(2)


def test_a_moment_of_computing_starts_the_quiet_anew(watch) -> None:
    watch.step(1)
    assert watch.pass_(1.75) is None
    watch.computes = True
    assert watch.pass_(0.25) is None
    watch.computes = False
    assert watch.pass_(0.75) is None
    assert "hangs" in watch.pass_(0.5)


def test_the_process_is_left_alone_while_there_is_no_doubt(watch) -> None:
    for number in range(10):
        watch.step(number)
        watch.pass_(0.75)
    assert watch.asked == 0


def test_work_is_seen_from_a_word_between_steps(watch) -> None:
    watch.alive(3)
    watch.now = 10.0
    watch.liveness.look(10.0, lambda: False)
    watch.alive(3, running=1, busy=0.5)
    assert watch.pass_(1.5, lambda: watch.alive(3, running=1, busy=1)) is None
    assert "step 3" in watch.pass_(0.5)


def test_steps_without_a_message_of_their_own_count_as_progress(watch) -> None:
    steps = iter(range(1000))
    assert watch.pass_(100, lambda: watch.alive(next(steps), running=1, busy=0.1)) is None


def test_nobody_is_judged_by_our_own_sleep(watch) -> None:
    watch.step(1)
    watch.pass_(0.5)
    watch.now += 3600
    assert watch.liveness.look(watch.now, lambda: False) is None
    assert watch.pass_(2) is None
    assert "hangs" in watch.pass_(1)


def test_loading_is_given_up_only_when_nothing_is_read_or_computed() -> None:
    watch = Watch(loading=10)
    watch.computes = True
    assert watch.pass_(1000) is None
    watch.hear(Loading(1, 2))
    watch.computes = False
    assert watch.pass_(10) is None
    assert "nothing was heard of it for 10.2 s" in watch.pass_(1)
