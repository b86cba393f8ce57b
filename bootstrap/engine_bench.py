"""`mesh bench engine`: how fast a model runs on this machine, measured through a worker process as a node runs it.

1. torch is never imported here: the worker is a child, and it is asked as a node asks it.
2. Prompts are random token ids, different in every round, so that no prefix is known unless that is what is measured.
3. Each figure is the median over the rounds, which take turns with the numbers of requests.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec
import trio
from rich.console import Console
from rich.progress import Progress

from bootstrap.chart import Bar, Panel, panels
from bootstrap.tables import show
from mesh.errors import BackendFailed, BadRequest, Misconfigured
from mesh.messages.inference import Delta, InferenceRequest
from node.backends.torch import TorchBackend, TorchSettings, require_worker_packages
from node.model_directory import check_model_directory
from node.progress import LoadingProgress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mesh.messages.inference import Event
    from mesh.messages.worker import Ready

SHARED = 512
"""Tokens of the prefix that is computed once and then known."""
_SMALLEST_ID = 3
_TEXT_VOCABULARY = 256
"""Ids that every model has."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """`requests`: how many at the same time, one measurement each. `json` and `svg`: files to write."""

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    threads: int | None = None
    requests: tuple[int, ...] = (1, 8, 32)
    prompt: int = 64
    tokens: int = 64
    rounds: int = 3
    json: Path | None = None
    svg: Path | None = None


@dataclass(kw_only=True)
class Answer:
    """When its tokens came, in seconds since it was asked."""

    times: list[float] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """So many requests at once: milliseconds to the first token (mean) and between tokens."""

    requests: int
    tokens_per_second: float
    first_token_ms: float
    gap_p50_ms: float
    gap_p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that was measured. `known_prefix`: time to the first token, as a part of that without a known prefix."""

    model: str
    dtype: str
    prompt: int
    tokens: int
    rows: list[Row]
    known_prefix: float | None
    device: str = ""
    device_name: str = ""
    weights: str = ""
    """How they are kept where that is not in `dtype`: `int8`."""
    threads: int = 0
    """That computed on the CPU."""

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        kept = f"{self.dtype}, {self.weights} weights" if self.weights else self.dtype
        threads = f" with {self.threads} {'thread' if self.threads == 1 else 'threads'}" if self.threads else ""
        return f"{self.model}: {kept} on {self.device or 'the engine'}{threads}"


def bench_engine(settings: BenchSettings) -> Result:
    """Measure, show a table, and write what was asked for. Raises Misconfigured, BackendFailed."""
    check_model_directory(settings.model)
    require_worker_packages()
    try:
        result = trio.run(_measured, settings)
    except BaseExceptionGroup as group:
        raise _first(group) from None
    print(f"{result.title}; {result.prompt} tokens of prompt, {result.tokens} of answer", file=sys.stderr)
    show(
        ("requests", "tokens/s", "first token, ms", "gap p50, ms", "gap p99, ms"),
        [
            (str(row.requests), *(f"{value:.1f}" for value in (
                row.tokens_per_second, row.first_token_ms, row.gap_p50_ms, row.gap_p99_ms
            )))
            for row in result.rows
        ],
    )  # fmt: skip
    if result.known_prefix is not None:
        print(f"first token with {SHARED} known tokens: {result.known_prefix:.3f} of the time without")
    _write(settings, result)
    return result


def _write(settings: BenchSettings, result: Result) -> None:
    try:
        if settings.json is not None:
            settings.json.write_text(json.dumps(asdict(result, dict_factory=_rounded), indent=1) + "\n")
        if settings.svg is not None:
            settings.svg.write_text(drawn(result))
    except OSError as error:
        raise Misconfigured(f"the result cannot be written: {error}; name a file in a folder that is there") from error


def drawn(result: Result) -> str:
    """The figures as a picture."""
    kinds = (
        ("tokens per second, all together", "tokens_per_second"),
        ("milliseconds to the first token", "first_token_ms"),
        ("milliseconds between tokens, median", "gap_p50_ms"),
    )
    return panels(
        result.title,
        [Panel(unit, [Bar(f"{row.requests} at once", getattr(row, name), name) for row in result.rows]) for unit, name in kinds],
    )


def _rounded(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """More digits than were measured say nothing."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in pairs}


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the nurseries' groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _measured(settings: BenchSettings) -> Result:
    loading = LoadingProgress()
    backend = TorchBackend(
        TorchSettings(
            model=settings.model.resolve().name,
            path=settings.model.resolve(),
            device=settings.device,
            dtype=settings.dtype,
            weights=settings.weights,
            threads=settings.threads,
            slots=max(settings.requests),
        ),
        on_loading=loading.loading,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        loading.close()
        if backend.entry.state != "ready":
            status = backend.status()
            raise (Misconfigured if status.refused else BackendFailed)(status.last_error or "the worker did not start")
        result = _told(await Bench(backend, settings).run(), backend.status().worker)
        nursery.cancel_scope.cancel()
    return result


def _told(result: Result, worker: Ready | None) -> Result:
    """With what the worker says of itself."""
    if worker is None:
        return result
    return replace(
        result,
        dtype=worker.dtype,
        device=worker.device,
        device_name=worker.device_name,
        weights=worker.weights,
        threads=worker.threads,
    )


class Bench:
    """One run on a backend that is ready."""

    def __init__(self, backend: TorchBackend, settings: BenchSettings) -> None:
        self._backend = backend
        self._settings = settings
        self._source = random.Random(0)  # noqa: S311 - the same prompts every time
        self._vocabulary = _vocabulary(settings.model)
        self._asked = 0

    async def run(self) -> Result:
        """Raises BackendFailed when the worker dies."""
        settings = self._settings
        context = self._backend.entry.context_length or 0
        if settings.prompt + settings.tokens > context:
            needed = settings.prompt + settings.tokens
            raise Misconfigured(f"prompt and answer take {needed} tokens, the model takes {context}; ask for less")
        rows: dict[int, list[Row]] = {count: [] for count in settings.requests}
        with Progress(console=Console(file=sys.stderr), transient=True, auto_refresh=False) as progress:
            bar = progress.add_task("measuring", total=settings.rounds * len(rows))
            await self._together(1)
            for _ in range(settings.rounds):
                for count, found in rows.items():
                    found.append(await self._together(count))
                    progress.advance(bar)
                    progress.refresh()
            known = await self._known_prefix() if context > SHARED + 2 * settings.rounds else None
        return Result(
            model=self._backend.entry.id,
            dtype=settings.dtype,
            prompt=settings.prompt,
            tokens=settings.tokens,
            rows=[_middle(found) for found in rows.values()],
            known_prefix=known,
        )

    async def _together(self, count: int) -> Row:
        answers = [Answer() for _ in range(count)]
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for answer in answers:
                nursery.start_soon(self._ask, self._ids(self._settings.prompt), self._settings.tokens, answer)
        seconds = time.perf_counter() - begun
        gaps = sorted(gap for answer in answers for gap in answer.gaps) or [0.0]
        return Row(
            requests=count,
            tokens_per_second=sum(len(answer.times) for answer in answers) / seconds,
            first_token_ms=1e3 * statistics.mean(answer.times[0] for answer in answers),
            gap_p50_ms=1e3 * gaps[len(gaps) // 2],
            gap_p99_ms=1e3 * gaps[int(0.99 * len(gaps))],
        )

    async def _known_prefix(self) -> float:
        """Time to the first token behind a known prefix, as a part of that of a prompt as long."""
        ratios = []
        for _ in range(self._settings.rounds):
            shared, times = self._ids(SHARED), []
            for end in (self._ids(2), self._ids(2)):
                answer = Answer()
                await self._ask([*shared, *end], 1, answer)
                times.append(answer.times[0])
            ratios.append(times[1] / times[0])
        return statistics.median(ratios)

    async def _ask(self, prompt: list[int], tokens: int, answer: Answer) -> None:
        begun = time.perf_counter()

        def hear(event: Event) -> None:
            if isinstance(event, Delta):
                answer.times.append(time.perf_counter() - begun)

        self._asked += 1
        await self._backend.infer(
            InferenceRequest(
                request_id=f"bench-{self._asked}",
                model=self._backend.entry.id,
                task="completion",
                prompt=prompt,
                max_tokens=tokens,
                temperature=0.0,
                ignore_eos=True,
            ),
            hear,
        )
        if not answer.times:
            raise BadRequest("the model ended an answer before its first token; it cannot be measured")

    def _ids(self, count: int) -> list[int]:
        return [self._source.randrange(_SMALLEST_ID, self._vocabulary) for _ in range(count)]


def _vocabulary(model: Path) -> int:
    """How many ids the configuration names."""
    config = msgspec.json.decode((model / "config.json").read_bytes(), type=dict[str, object])
    for owner in (config, config.get("text_config")):
        size = owner.get("vocab_size") if isinstance(owner, dict) else None
        if isinstance(size, int) and size > _SMALLEST_ID:
            return size
    return _TEXT_VOCABULARY


def _middle(rows: Sequence[Row]) -> Row:
    values = {
        name: statistics.median(getattr(row, name) for row in rows)
        for name in ("tokens_per_second", "first_token_ms", "gap_p50_ms", "gap_p99_ms")
    }
    return Row(requests=rows[0].requests, **values)
