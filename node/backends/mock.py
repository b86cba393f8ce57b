"""A backend without a model: words that depend on nothing but the prompt, the seed and the position.

1. The same (prompt, seed, position) is the same word everywhere, so a retry or a second node can be compared word for word.
2. Words are the tokens: ids are indices into `WORDS`, `usage` counts words, the joined text is the words with single spaces.
3. One loop serves all requests: whatever is due within one `TICK` is emitted in one go, as an engine's step would.
4. Several answers (`n`) are as many requests with seeds of their own. What concerns probabilities it cannot honour.
5. The vector of a text is chosen by the text alone, and has unit length.
6. It calls itself `mock` in its record. It exists for tests of everything around a model, never as an answer to a user.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.beyond_text import refuse
from mesh.errors import BackendFailed, BadRequest, Busy
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.vectors import pack
from node.backends.base import Backend, BackendStatus, nobody_listens
from node.fan_out import FanOut
from node.room import new_tokens, too_long

if TYPE_CHECKING:
    from mesh.messages.inference import Event, FinishReason, InferenceRequest
    from mesh.service import Emit

WORDS = (
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "lagoon", "meadow",
    "north", "orchard", "pebble", "quarry", "ridge", "shore", "thicket", "upland", "valley", "willow", "yonder", "zenith",
    "arch", "bridge", "canal", "dune", "estuary", "field", "glade", "harbour", "island", "juniper", "kelp", "ledge",
    "marsh", "narrows", "ocean", "pier", "quay", "river", "slope", "tide", "umbra", "vista", "wharf", "yarrow", "zephyr",
    "bay", "cliff", "dock", "elm", "fern", "gale", "heath", "iris", "jade", "kite", "lark", "moss", "opal", "pine",
)  # fmt: skip
"""The vocabulary, 64 words."""
DIMENSIONS = 64
"""Of a vector."""
TICK = 0.005
"""Seconds. What is due within one tick is one step."""
PULSE = 0.5
"""Seconds that an engine at work takes for a step at most."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class MockSettings:
    """How the mock behaves. Rates and lengths in words; 0 switches a knob off."""

    tokens_per_second: float = 0.0
    """Per request; 0 = as fast as it goes."""
    first_token_ms: float = 0.0
    context_length: int = 8192
    length: int = 0
    """Words until it stops by itself; 0 = 16 to 47, by prompt and seed."""
    slots: int = 64
    max_waiting: int = 256
    fail_rate: float = 0.0
    """Share of requests that fail before their first word: 0.25 is every fourth."""
    die_after_tokens: int = 0
    """A request fails after this many words, as if its worker had died."""
    hang_after_tokens: int = 0
    """A request says nothing more after this many words, and does not end."""
    busy: bool = False
    """Every request is refused with Busy."""


def fingerprint(prompt: str, seed: int) -> int:
    """The 64 bits that a prompt and a seed choose all words by."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8, key=seed.to_bytes(16, "big", signed=True)).digest()
    return int.from_bytes(digest, "big")


def token_at(chosen: int, position: int) -> int:
    """The token at a position, given a fingerprint: splitmix64's finaliser, so that neighbours have nothing in common."""
    mixed = (chosen + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) & _MASK) % len(WORDS)


def prompt_text(request: InferenceRequest) -> str:
    """What the mock reads as the prompt: the messages line by line, or the prompt, token ids as their words."""
    if request.task == "chat":
        return "\n".join(f"{message.get('role', '')}: {_content(message.get('content'))}" for message in request.messages or [])
    if isinstance(request.prompt, list):
        return " ".join(WORDS[token % len(WORDS)] for token in request.prompt)
    return request.prompt or ""


def embedding(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """The vector of a text: nothing but the text decides, and texts that differ in a letter have nothing in common."""
    chosen = fingerprint(text, 0)
    values = [token_at(chosen, position) - len(WORDS) / 2 + 0.5 for position in range(dimensions)]
    length = math.hypot(*values)
    return [value / length for value in values]


def _input_text(one: str | list[int]) -> str:
    return one if isinstance(one, str) else " ".join(WORDS[token % len(WORDS)] for token in one)


def _content(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


class _Script:
    """What one request will be answered: a pure function of the request and the settings."""

    embeddings: list[bytes] | None = None

    def __init__(self, request: InferenceRequest, settings: MockSettings) -> None:
        if request.task == "embedding":
            self._embed(request, settings)
            return
        text = prompt_text(request)
        self.prompt_tokens = len(text.split())
        wanted = new_tokens(request, prompt_tokens=self.prompt_tokens, context_length=settings.context_length)
        self._fingerprint = fingerprint(text, request.seed)
        natural = max(request.min_tokens, settings.length or 16 + self._fingerprint % 32)
        natural = wanted + 1 if request.ignore_eos else natural
        self.length = min(natural, wanted)
        self.finish_reason: FinishReason = "stop" if natural <= wanted else "length"
        self._pieces = self._cut_at(request.stop) if any(request.stop) else None

    def _embed(self, request: InferenceRequest, settings: MockSettings) -> None:
        """No words at all: the answer is in its end."""
        texts = [_input_text(one) for one in request.inputs or []]
        lengths = [len(text.split()) for text in texts]
        if (request.dimensions or 1) > DIMENSIONS:
            raise BadRequest(f"vectors of the mock have {DIMENSIONS} dimensions; ask for at most so many", param="dimensions")
        if max(lengths, default=0) > settings.context_length:
            raise too_long(lengths.index(max(lengths)), max(lengths), settings.context_length)
        self.embeddings = [pack(embedding(text, request.dimensions or DIMENSIONS)) for text in texts]
        self.prompt_tokens, self.length, self.finish_reason, self._pieces = sum(lengths), 0, "stop", None

    def check_prior(self, prior: list[list[int]]) -> int:
        """At which position to go on. Raises BadRequest when the answer does not begin like this."""
        given = prior[0] if prior else []
        if len(prior) > 1 or len(given) > self.length or any(self.word(at)[0] != token for at, token in enumerate(given)):
            raise BadRequest("this answer of the mock does not begin with the tokens in prior", param="prior")
        return len(given)

    def word(self, position: int) -> tuple[int, str]:
        """The token at a position and the text that it adds."""
        token, text = self._whole_word(position)
        return token, text if self._pieces is None else self._pieces[position]

    def _whole_word(self, position: int) -> tuple[int, str]:
        token = token_at(self._fingerprint, position)
        return token, WORDS[token] if position == 0 else " " + WORDS[token]

    def _cut_at(self, stops: list[str]) -> list[str] | None:
        """The text of every position up to where the earliest stop string begins; None when there is none."""
        pieces = [self._whole_word(position)[1] for position in range(self.length)]
        text = "".join(pieces)
        found = [index for stop in stops if stop and (index := text.find(stop)) >= 0]
        if not found:
            return None
        kept: list[str] = []
        left = min(found)
        while left > 0:
            kept.append(pieces[len(kept)][:left])
            left -= len(kept[-1])
        self.length, self.finish_reason = len(kept), "stop"
        return kept


class _Job:
    """One request under way. `due` is the trio time of its next word."""

    def __init__(self, script: _Script, emit: Emit, resumed: int) -> None:
        self.script = script
        self.emit = emit
        self.position = resumed
        self.submitted = self.started = self.first = trio.current_time()
        self.due = 0.0
        self.gone = False
        self.ended = trio.Event()
        self.error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.gone = True
        self.ended.set()


class MockBackend(Backend):
    """One made-up model; see the head of this file."""

    def __init__(self, model: str, settings: MockSettings | None = None) -> None:
        self._settings = settings = settings or MockSettings()
        self.entry = ModelEntry(
            id=model,
            state="ready",
            context_length=settings.context_length,
            weights_digest="mock",
            numerics="mock",
            backend="mock",
            created=int(time.time()),
            capabilities=Capabilities(
                tasks=["chat", "completion", "embedding"],
                hardware_types=["cpu"],
                protocols=["infermesh"],
                max_batch=settings.slots,
            ),
        )
        self.changed = nobody_listens
        self._waiting: dict[_Job, None] = {}
        self._running: set[_Job] = set()
        self._wheel: list[tuple[float, int, _Job]] = []
        self._order = itertools.count()
        self._work = trio.Event()
        self._fault = 0.0
        self._steps = 0
        self._since: float | None = None

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]  # read-only here: it is counted, not stored
        """The counters of this moment."""
        return ModelLoad(
            "ready", running=len(self._running), waiting=len(self._waiting), slots=self._settings.slots, step=self._steps
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        self._since = trio.current_time()
        task_status.started()
        while True:
            self._work = trio.Event()
            with trio.move_on_at(min(self._wheel[0][0], trio.current_time() + PULSE) if self._wheel else math.inf):
                await self._work.wait()
            self._step(trio.current_time() + TICK / 2)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Answer one request. Raises BadRequest, Busy, and BackendFailed where a knob says so."""
        refuse(request, "a mock", ("logprobs", "response_format", "tool_choice", "echo"))
        fan_out = FanOut()
        jobs: dict[int, _Job] = {}

        def tell(number: int, event: Event) -> None:
            for _, each in fan_out.merge([(number, event)], lambda _: None):
                emit(each)

        try:
            for number, part in fan_out.split(0, request):
                jobs[number] = self._admit(part, partial(tell, number))
            for job in jobs.values():
                await job.ended.wait()
                if job.error is not None:
                    raise job.error
        finally:
            for job in jobs.values():
                self._leave(job)

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""
        return BackendStatus(
            state="ready",
            running=self._since is not None,
            uptime=0.0 if self._since is None else trio.current_time() - self._since,
        )

    def _admit(self, request: InferenceRequest, emit: Emit) -> _Job:
        settings = self._settings
        if settings.busy or len(self._waiting) >= settings.max_waiting:
            raise Busy(f"{self.entry.id} is busy on this node; try again", retry_after=1)
        script = _Script(request, settings)
        job = _Job(script, emit, script.check_prior(request.prior))
        self._fault += settings.fail_rate
        if self._fault >= 1:
            self._fault -= 1
            raise BackendFailed("this mock fails at the rate that it was told to")
        self._waiting[job] = None
        self._fill_slots()
        job.emit(Accepted(running=len(self._running), waiting=len(self._waiting)))
        return job

    def _fill_slots(self) -> None:
        while self._waiting and len(self._running) < self._settings.slots:
            job = next(iter(self._waiting))
            del self._waiting[job]
            self._running.add(job)
            job.started = trio.current_time()
            self._schedule(job, job.started + self._settings.first_token_ms / 1000)

    def _schedule(self, job: _Job, due: float) -> None:
        job.due = due
        heapq.heappush(self._wheel, (due, next(self._order), job))
        self._work.set()

    def _step(self, horizon: float) -> None:
        """Emit one word of everything that is due before `horizon`."""
        due: list[_Job] = []
        while self._wheel and self._wheel[0][0] <= horizon:
            due.append(heapq.heappop(self._wheel)[2])
        # Waiting for its time is this engine's work; what hangs is not in the wheel.
        self._steps += bool(due or self._wheel)
        for job in due:
            try:
                if not job.gone:
                    self._advance(job)
            except Exception as error:  # noqa: BLE001 - one broken receiver must not end the loop that serves all
                job.end(error)

    def _advance(self, job: _Job) -> None:
        settings = self._settings
        if settings.die_after_tokens and job.position >= settings.die_after_tokens:
            job.end(BackendFailed("this mock dies after as many tokens as it was told to", code="worker_died"))
            return
        if settings.hang_after_tokens and job.position >= settings.hang_after_tokens:
            return
        if job.position < job.script.length:
            self._emit_word(job)
        if job.position >= job.script.length:
            job.emit(self._done(job))
            job.end()
        else:
            # From when it was due, not from now: a late step is caught up with.
            self._schedule(job, job.due + (1 / settings.tokens_per_second if settings.tokens_per_second else 0))

    def _emit_word(self, job: _Job) -> None:
        token, text = job.script.word(job.position)
        if not job.first:
            job.first = trio.current_time()
        job.emit(Delta(job.position, [token], text))
        job.position += 1

    def _done(self, job: _Job) -> Done:
        now = trio.current_time()
        return Done(
            finish_reason=job.script.finish_reason,
            usage=Usage(job.script.prompt_tokens, job.position),
            performance=Performance(
                prefill_time_ms=(job.first - job.started) * 1000,
                decode_time_ms=(now - job.first) * 1000,
                queue_time_ms=(job.started - job.submitted) * 1000,
                tokens_per_second=(job.position - 1) / (now - job.first) if now > job.first else 0.0,
                batch_size=len(self._running),
            ),
            running=len(self._running) - 1,
            waiting=len(self._waiting),
            embeddings=job.script.embeddings,
        )

    def _leave(self, job: _Job) -> None:
        job.gone = True
        self._waiting.pop(job, None)
        self._running.discard(job)
        self._fill_slots()


def parse_mock(args: str) -> tuple[list[str], MockSettings]:
    """Models and knobs from `"model-a,model-b;tokens_per_second=50;busy=true"`. Raises ValueError that says what is wrong."""
    names, *knobs = args.split(";")
    models = [name.strip() for name in names.split(",") if name.strip()]
    if not models:
        raise ValueError("the mock needs at least one model name")
    values: dict[str, str] = {}
    for knob in filter(None, (knob.strip() for knob in knobs)):
        name, equals, value = knob.partition("=")
        if not equals or name.strip() not in MockSettings.__dataclass_fields__:
            raise ValueError(f"{knob!r} is not a knob of the mock; there are: {', '.join(MockSettings.__dataclass_fields__)}")
        values[name.strip()] = value.strip()
    try:
        return models, msgspec.convert(values, MockSettings, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"a knob of the mock has a wrong value: {error}") from error
