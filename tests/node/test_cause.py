import signal

import pytest

from node.cause import cause_of_death


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (
            ["loading", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"],
            "out of memory (torch.OutOfMemoryError",
        ),
        (["OSError: [Errno 98] Address already in use"], "a port is taken"),
        (["RuntimeError: CUDA error: an illegal memory access was encountered"], "the GPU failed (RuntimeError: CUDA error"),
        (["RuntimeError: Found no NVIDIA driver on your system."], "the GPU failed"),
        (["usage: serve", "serve: error: unrecognized arguments: --gpu"], "it does not take a flag or its value (serve: error"),
        (["error: invalid choice: 'x'"], "it does not take a flag or its value"),
        (["ModuleNotFoundError: No module named 'vllm'"], "a package is missing (ModuleNotFoundError"),
        (["FileNotFoundError: [Errno 2] No such file or directory: 'a.gguf'"], "a file is missing (FileNotFoundError"),
        (["Traceback:", "ValueError: no such layer", "bye"], "exited with code 1: ValueError: no such layer"),
        (["hello", "world"], "exited with code 1: world"),
        ([], "without a word"),
    ],
)
def test_the_cause_is_mined_from_the_last_words(lines: list[str], part: str) -> None:
    assert part in cause_of_death(1, lines)


def test_a_taken_port_is_named_before_what_followed_from_it() -> None:
    lines = ["bind: Address already in use", "FileNotFoundError: No such file or directory: '/tmp/ready'"]
    assert "a port is taken" in cause_of_death(1, lines)


def test_memory_is_named_before_a_later_error() -> None:
    assert "out of memory" in cause_of_death(1, ["MemoryError", "error: cannot go on"])


def test_a_signal_is_named() -> None:
    assert cause_of_death(-signal.SIGSEGV, []) == "killed by SIGSEGV without a word"
    assert cause_of_death(-signal.SIGKILL, ["working"]) == "killed by SIGKILL: working"
    assert cause_of_death(-199, []).startswith("killed by signal 199")


def test_what_went_well_is_no_cause() -> None:
    assert cause_of_death(-signal.SIGKILL, ["cannot open it", "INFO main: ready"]) == "killed by SIGKILL: cannot open it"
    assert cause_of_death(-signal.SIGKILL, ["INFO main: ready", "DEBUG main: step"]) == "killed by SIGKILL without a word"


def test_the_kernel_is_blamed_only_when_memory_ran_out() -> None:
    assert "by the kernel" in cause_of_death(-signal.SIGKILL, [], memory_ran_out=True)
    assert "by the kernel" not in cause_of_death(-signal.SIGTERM, [], memory_ran_out=True)


def test_a_process_that_never_started_has_a_cause() -> None:
    assert cause_of_death(None, []) == "did not start without a word"


def test_a_long_line_is_cut() -> None:
    assert len(cause_of_death(1, ["error " + "x" * 10_000])) < 400
