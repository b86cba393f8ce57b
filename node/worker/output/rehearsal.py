"""Compiles a grammar in a process of its own first: `python -m node.worker.output.rehearsal` is that process.

1. The library bounds its own effort but not its recursion: some grammars overflow the stack, which ends the process. What does
   so, takes longer than `LONGEST` or more than `MEMORY` is the client's error, and never reaches the worker itself.
2. The rehearsal has a smaller stack than any thread of the worker, and the worker's own tokenizer: what passes here passes there.
3. There is one process, started for the first grammar, and again after it had to be ended. It ends with its input.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from mesh.errors import BackendFailed

LONGEST = 5.0
"""Seconds that compiling a grammar may take."""
OPENING = 60.0
"""Seconds that the process may take until it has read the tokenizer."""
MEMORY = 512 * 1024 * 1024
"""Bytes that compiling may take."""
STACK = 1024 * 1024
"""Bytes; threads of the worker have at least twice as many."""


@dataclass(frozen=True)
class Words:
    """A tokenizer as the library takes it: Hugging Face's JSON, the rows of the embedding, the ids that end an answer."""

    tokenizer: str
    vocabulary: int
    end_tokens: list[int]

    def read(self) -> Any:
        """The library's own form of it."""
        # Imported late: most workers are never asked for it.
        from llguidance import LLTokenizer

        return LLTokenizer(self.tokenizer, n_vocab=self.vocabulary, eos_token=self.end_tokens)


class Rehearsal:
    """Tries grammars for one tokenizer, one at a time. May be called from any thread."""

    def __init__(self, words: Words, *, longest: float = LONGEST) -> None:
        self._words = words
        self._longest = longest
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def fails(self, grammar: str) -> str:
        """What compiling it does that it must not; empty when it can be done, or says that the grammar is wrong.

        Raises BackendFailed when there is no process to try it in.
        """
        with self._lock:
            process = self._alive()
            _tell(process, grammar)
            answered = _heard(process, self._longest)
            if answered:
                return ""
            self._end()
        return f"takes more than {self._longest:g} s to compile" if answered is None else "overflows the compiler"

    def close(self) -> None:
        """End the process. The next grammar starts another one."""
        with self._lock:
            self._end()

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "node.worker.output.rehearsal"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            raise BackendFailed(f"the grammar could not be checked ({error}); try again") from error
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        _tell(process, asdict(self._words))
        if not _heard(process, OPENING):
            self._end()
            raise BackendFailed("the process that checks grammars did not start; see the worker's log")
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _tell(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin
    line = memoryview(json.dumps(value).encode() + b"\n")
    # Who does not read any more has ended; that is seen when it is listened to.
    with suppress(BrokenPipeError):
        while line:
            line = line[process.stdin.write(line) :]


def _heard(process: subprocess.Popen[bytes], seconds: float) -> bool | None:
    """Whether it said that it is done, or has ended instead; None when neither happened in time."""
    assert process.stdout
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    if not poll.poll(1000 * seconds):
        return None
    return bool(process.stdout.read(1))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream
        stream.close()


def main(incoming: IO[bytes], outgoing: IO[bytes]) -> None:
    """Be the process: a tokenizer, then grammars, a line of JSON each; a byte when one is done."""
    words = Words(**json.loads(incoming.readline())).read()
    _bound_memory()
    outgoing.write(b"\n")
    threading.stack_size(STACK)
    thread = threading.Thread(target=_rehearse, args=(words, incoming, outgoing))
    thread.start()
    thread.join()


def _rehearse(words: Any, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
    from llguidance import LLMatcher

    while line := incoming.readline():
        matcher = LLMatcher(words, json.loads(line), log_level=0)
        if not matcher.is_error():
            # The first look at the vocabulary finishes what compiling has left for later.
            matcher.deep_copy().compute_bitmask()
        outgoing.write(b"\n")


def _bound_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource
        from pathlib import Path

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    with open(0, "rb") as incoming, open(1, "wb", buffering=0) as outgoing:
        main(incoming, outgoing)
