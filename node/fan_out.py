"""Requests for several answers: each answer runs in the engine as a request of its own.

1. The engine knows inner numbers, which are negative; numbers of requests for one answer pass unchanged.
2. Answer i samples with a seed of its own, so it does not depend on how many others were asked for.
3. The request ends once: with `Done` when every answer has ended, or with the first `Fail`, which ends the other answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from mesh.messages.inference import Accepted, Delta, Done, Fail, Kept, Performance, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.messages.inference import Event, InferenceRequest


@dataclass
class _Group:
    """The answers of one request. `done` holds those that have ended, by choice."""

    number: int
    inner: list[int]
    accepted: bool = False
    done: dict[int, Done] = field(default_factory=dict)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several answers to a request; the first one's is the request's own."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class FanOut:
    """What stands between the numbers of the node and those of the engine."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._choices: dict[int, tuple[_Group, int]] = {}
        self._last = 0

    def split(self, number: int, request: InferenceRequest) -> list[tuple[int, InferenceRequest]]:
        """What to submit for a request."""
        if request.n == 1 or number in self._groups:
            return [(number, request)]
        group = self._groups[number] = _Group(number, [])
        parts: list[tuple[int, InferenceRequest]] = []
        for choice in range(request.n):
            self._last -= 1
            group.inner.append(self._last)
            self._choices[self._last] = (group, choice)
            part = msgspec.structs.replace(
                request, n=1, seed=choice_seed(request.seed, choice), prior=request.prior[choice : choice + 1]
            )
            parts.append((self._last, part))
        return parts

    def numbers(self, number: int) -> list[int]:
        """What to abort for a request."""
        group = self._groups.get(number)
        return list(group.inner) if group else [number]

    def merge(self, events: Iterable[tuple[int, Event]], abort: Callable[[int], None]) -> list[tuple[int, Event]]:
        """The engine's events as those of the requests. `abort` ends an answer whose sibling failed."""
        if not self._last:
            return list(events)
        merged: list[tuple[int, Event]] = []
        for number, event in events:
            if number >= 0:
                merged.append((number, event))
            elif number in self._choices:
                group, choice = self._choices[number]
                merged += [(group.number, each) for each in self._translate(group, choice, event, abort)]
        return merged

    def _translate(self, group: _Group, choice: int, event: Event, abort: Callable[[int], None]) -> list[Event]:
        match event:
            case Accepted():
                first, group.accepted = not group.accepted, True
                return [event] if first else []
            case Delta():
                return [msgspec.structs.replace(event, choice=choice)]
            case Done():
                return self._end(group, choice, event)
            case Fail():
                inner = [number for number in group.inner if number in self._choices]
                self._forget(group)
                for number in inner:
                    abort(number)
                return [event]
            case Kept():
                return []

    def _end(self, group: _Group, choice: int, done: Done) -> list[Event]:
        group.done[choice] = done
        ended = Delta(done.usage.completion_tokens, [], "", choice=choice, finish_reason=done.finish_reason)
        if len(group.done) < len(group.inner):
            return [ended]
        self._forget(group)
        return [ended, _together([group.done[each] for each in range(len(group.inner))], done)]

    def _forget(self, group: _Group) -> None:
        del self._groups[group.number]
        for number in group.inner:
            del self._choices[number]


def _together(answers: list[Done], last: Done) -> Done:
    """The counts of all answers; the prompt was read once. Times are those of the slowest, rates add up."""
    times = [answer.performance for answer in answers]
    return msgspec.structs.replace(
        last,
        finish_reason=answers[0].finish_reason,
        usage=Usage(answers[0].usage.prompt_tokens, sum(answer.usage.completion_tokens for answer in answers)),
        performance=Performance(
            prefill_time_ms=max(each.prefill_time_ms for each in times),
            decode_time_ms=max(each.decode_time_ms for each in times),
            queue_time_ms=max(each.queue_time_ms for each in times),
            tokens_per_second=sum(each.tokens_per_second for each in times),
            batch_size=max(each.batch_size for each in times),
        ),
    )
