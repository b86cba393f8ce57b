"""Attention of variable length gives every row what groups and pieces give it."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.worker.attention import Inexact, StepContext, attend, slot_attention
from node.worker.cache.arena import ArenaShape
from node.worker.cuda import varlen
from node.worker.loader import Options, load
from node.worker.output.choice import computed_only
from node.worker.runner import Room, SlotRunner
from node.worker.scheduler import Share
from node.worker.sequence import Sequence
from tests.node.worker.adapters import save_adapter
from tests.node.worker.conftest import Driver
from tests.node.worker.cuda.by_lengths import varlen_attn

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY, DIM, CONTEXT, SLABS = 50, 16, 512, 6
KERNEL = varlen.kernel


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: varlen_attn)


class OneLayer:
    """A model that is nothing but attention, in one layer: a Forward."""

    def __init__(self, heads: int, kv_heads: int, window: int | None, scaling: float | None) -> None:
        source = torch.Generator().manual_seed(1)
        self.query, self.key, self.value = (
            torch.randn(VOCABULARY, count, DIM, generator=source) for count in (heads, kv_heads, kv_heads)
        )
        self.window, self.scaling = window, scaling

    def __call__(self, tokens: torch.Tensor, step: StepContext, keep: torch.Tensor) -> torch.Tensor:
        rows = [table[tokens] for table in (self.query, self.key, self.value)]
        seen = attend(step, 0, *rows, scaling=self.scaling, window=self.window)
        assert bool(seen.isfinite().all())
        return seen[keep].flatten(1)


def outcome(forward: OneLayer, members: list[tuple[int, int]], *, by_lengths: bool) -> torch.Tensor:
    """One step of sequences that each have so many tokens, and compute so many of them."""
    model = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))
    room = Room(slots=64, context=CONTEXT, slabs=SLABS, prefixes=64)
    shape = ArenaShape(layers=1, tokens=room.tokens, kv_heads=forward.key.shape[1], head_dim=DIM)
    runner = SlotRunner(model, shape, room, forward=forward)
    runner.varlen = by_lengths
    source = torch.Generator().manual_seed(2)
    for tensor in (runner.arena.keys, runner.arena.values):
        tensor.copy_(torch.randn(tensor.shape, generator=source))
    shares = []
    for number, (length, count) in enumerate(members):
        tokens = [(7 * number + 3 * place) % VOCABULARY for place in range(length)]
        sequence = Sequence(number=number, tokens=tokens, prompt_length=length, choice=computed_only())
        runner.memory.lend(sequence)
        sequence.computed = length - count
        shares.append(Share(sequence, count))
    for hole in shares[1::3]:
        runner.memory.release(hole.sequence, keep=False)
    left = [share for number, share in enumerate(shares) if number % 3 != 1]
    random.Random(4).shuffle(left)
    return runner.run(sorted(left, key=lambda share: share.count > 1))


STEPS = {
    "one token": [(9, 1)],
    "a short piece": [(9, 2)],
    "two tokens and nobody": [(30, 1), (5, 5), (12, 1)],
    "tokens in many slabs": [(length, 1) for length in (3, 100, 1, 40, 200, 17, 128, 250, 2, 77, 500)],
    "pieces": [(60, 60), (9, 4), (50, 10), (300, 7), (140, 140)],
    "all kinds": [(5, 1), (60, 60), (9, 4), (50, 1), (130, 7), (22, 1), (1, 1), (12, 1), (90, 2)],
}


@pytest.mark.parametrize("members", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(("window", "scaling"), [(None, None), (5, 0.3)], ids=["all", "window"])
@pytest.mark.parametrize("heads", [4, 2], ids=["shared keys", "own keys"])
def test_each_row_sees_what_it_sees_in_groups_and_pieces(
    heads: int, window: int | None, scaling: float | None, members: list[tuple[int, int]]
) -> None:
    forward = OneLayer(heads, 2, window, scaling)
    expected = outcome(forward, members, by_lengths=False)
    assert len(expected) == len(members) - len(members[1::3])
    torch.testing.assert_close(outcome(forward, members, by_lengths=True), expected)


def test_single_tokens_without_a_window_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, tuple[int, int]]] = []

    def listening(*args: Any, **options: Any) -> torch.Tensor:
        told.append((args[5], args[6], options["window_size"]))
        return varlen_attn(*args, **options)

    monkeypatch.setattr(varlen, "kernel", lambda: listening)
    for window in (None, 5):
        outcome(OneLayer(4, 2, window, None), STEPS["all kinds"], by_lengths=True)
    assert told == [(1, CONTEXT, (-1, -1)), (4, CONTEXT, (-1, 0)), (1, CONTEXT, (4, 0)), (4, CONTEXT, (4, 0))]


class Capped(OneLayer):
    """Bends its scores, as the modules of transformers ask for it."""

    def __call__(self, tokens: torch.Tensor, step: StepContext, keep: torch.Tensor) -> torch.Tensor:
        rows = [table[tokens].transpose(0, 1)[None] for table in (self.query, self.key, self.value)]
        module = SimpleNamespace(layer_idx=0)
        return slot_attention(module, *rows, None, softcap=3.0, slot_step=step)[0][0, keep].flatten(1)


def test_soft_caps_are_refused() -> None:
    outcome(Capped(4, 2, None, None), STEPS["one token"], by_lengths=False)
    with pytest.raises(Inexact, match="soft caps"):
        outcome(Capped(4, 2, None, None), STEPS["one token"], by_lengths=True)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"),
    [(torch.float32, 64, "not float32"), (torch.bfloat16, 60, "multiple of 8"), (torch.float16, 320, "heads of 320")],
)
def test_what_the_kernel_does_not_take_is_not_tried(dtype: torch.dtype, head_dim: int, reason: str) -> None:
    assert reason in (varlen.refusal(torch.device("cuda:0"), dtype, head_dim) or "")


def answers(path: Path, *, by_lengths: bool, adapters: dict[str, Path]) -> list[list[int]]:
    options = Options(path=path, device="cpu", dtype="float32", slots=6, adapters=adapters)
    engine, _ = load(options, lambda _: None)
    runner: Any = engine._runner
    inner = getattr(runner, "_runner", runner)
    inner.varlen = by_lengths
    driver, source = Driver(engine), random.Random(3)
    numbers = []
    orders = []
    for turn in range(14):
        prompt = [source.randrange(3, 400) for _ in range(source.choice((1, 4, 40, 90)))]
        model = list(adapters)[turn % 3 - 1] if adapters and turn % 3 else "m"
        numbers.append(driver.submit(model=model, prompt=prompt, max_tokens=2 + 5 * turn % 13))
        driver.step()
        starts = [sequence.extent.start for sequence in engine._scheduler.active if sequence.extent]
        orders.append(starts == sorted(starts))
    driver.run()
    # Otherwise nothing would have had to be put in order.
    assert not all(orders)
    return [driver.outcomes[number].ids for number in numbers]


def test_a_whole_engine_gives_the_same_answers(models_folder: Path, tmp_path: Path) -> None:
    path = models_folder / "mistral-window"
    model = AutoModelForCausalLM.from_pretrained(path)
    adapters = {name: tmp_path / name for name in ("one", "other")}
    for seed, folder in enumerate(adapters.values(), start=1):
        save_adapter(folder, model, seed=seed)
    for some in ({}, adapters):
        expected = answers(path, by_lengths=False, adapters=some)
        assert answers(path, by_lengths=True, adapters=some) == expected


@pytest.mark.parametrize("window", [None, 5])
def test_torchs_function_takes_the_call(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", KERNEL)
    query = torch.empty(6, 4, 64, dtype=torch.bfloat16, device="meta")
    keys = torch.empty(2, 1000, 64, dtype=torch.bfloat16, device="meta")
    single, piece = (
        varlen.Lengths(
            rows=rows,
            longest=longest,
            context=256,
            **{
                name: torch.empty(count, dtype=torch.int32, device="meta")
                for name, count in (("queries", rows + 1), ("starts", rows + 1), ("used", rows))
            },
        )
        for rows, longest in ((2, 1), (4, 3))
    )
    seen = varlen.look(query, keys, keys, [single, piece], scaling=0.1, window=window)
    assert (seen.shape, seen.dtype) == (query.shape, query.dtype)
    assert not logging.getLogger(KERNEL().__module__).isEnabledFor(logging.INFO)
