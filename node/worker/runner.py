"""Runs the model over one step's shares.

1. A step is one forward pass over one row of tokens; see `node.worker.attention` for its order.
2. The row, and the rows whose logits are computed, are padded to at least `LEAST_ROWS`: matrix kernels take another path for
   very few rows, and a result must not depend on who else is being served.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import torch

from node.worker.attention import DecodeGroup, Piece, StepContext
from node.worker.cache.arena import Arena, ArenaShape
from node.worker.cache.extents import Extent, Extents
from node.worker.cache.memory import Memory
from node.worker.cache.radix import RadixCache
from node.worker.cuda.varlen import Lengths, Member, numbers
from node.worker.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from node.worker.cuda.graphs import Recorded
    from node.worker.scheduler import Share

_logger = logging.getLogger(__name__)

LEAST_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much is cached: `slabs` times the context for running sequences, `prefixes` tokens for what was computed before."""

    slots: int
    context: int
    slabs: int
    prefixes: int

    @property
    def tokens(self) -> int:
        """All of it."""
        return self.slabs * self.context + self.prefixes


class Runner(Protocol):
    """What the engine needs of a model. Where a sequence lies is the memory's business; a runner only computes."""

    slots: int
    context_length: int
    batching: bool
    memory: Memory
    device: torch.device

    def order(self, shares: Sequence[Share]) -> Sequence[int]:
        """In which order the shares' rows stand in the step."""
        ...

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Compute the shares; the logits after each one that completes, in their order [completing, vocabulary]."""
        ...

    def reset(self) -> None:
        """Forget everything, after a step broke. No sequence has room then."""
        ...

    def relieve(self) -> None:
        """Give back what is not needed: the device ran out of memory."""
        ...

    def rest(self) -> int:
        """Forget everything and give its memory back; the bytes. No sequence has room then, and none gets any before `rise`."""
        ...

    def rise(self) -> None:
        """Take the memory again."""
        ...


class Forward(Protocol):
    """Runs a model over one row of tokens, with `node.worker.attention` between them."""

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """Logits after the tokens that `keep` numbers [keep, vocabulary]."""
        ...


class ModuleForward:
    """By the modules of transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """See Forward."""
        logits: Tensor = self._model(
            input_ids=tokens[None], position_ids=step.positions[None], use_cache=False, slot_step=step, logits_to_keep=keep
        ).logits
        return logits[0]


class SlotRunner:
    """Many sequences at once over the arena."""

    batching = True

    def __init__(self, model: Any, shape: ArenaShape, room: Room, *, forward: Forward | None = None) -> None:
        assert shape.tokens == room.tokens
        self.slots = room.slots
        self.context_length = room.context
        self.arena = Arena(shape, dtype=model.dtype, device=model.device)
        extents = Extents(slab=room.context, slabs=room.slabs)
        self.memory = Memory(extents, RadixCache(start=extents.tokens, pool=room.prefixes), self.arena)
        self.forward: Forward = forward or ModuleForward(model)
        self.device: torch.device = model.device
        self.staging = Staging(self.device)
        self.varlen = False
        """Whether attention is of variable length; see `node.worker.cuda.varlen`."""
        self.recorded: Recorded | None = None
        """Computes steps in place of `forward` where steps of single tokens are recorded; see `node.worker.cuda.graphs`."""

    def order(self, shares: Sequence[Share]) -> Sequence[int]:
        """See Runner. Attention of variable length wants them by place."""
        if not self.varlen:
            return range(len(shares))
        return sorted(range(len(shares)), key=lambda number: (shares[number].count > 1, _extent(shares[number]).start))

    def run(self, shares: Sequence[Share]) -> Tensor:
        """See Runner. The shares of a single token come first."""
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        ends: dict[int, int] = {}
        order = self.order(shares)
        for number in order:
            share = shares[number]
            begin, count = share.sequence.computed, share.count
            start = _extent(share).start + begin
            tokens += share.sequence.tokens[begin : begin + count]
            positions += range(begin, begin + count)
            places += range(start, start + count)
            if share.completes:
                ends[number] = len(tokens) - 1
        completing = [ends[number] for number in sorted(ends)]
        padding = self._height(len(tokens), single=len(tokens) == len(shares)) - len(tokens)
        rows = [tokens + [0] * padding, _padded(completing), places + [self.arena.scrap] * padding, positions + [0] * padding]
        row, keep, step = self._told([shares[number] for number in order], rows, padding)
        logits = (self.recorded or self.forward)(row, step, keep)
        self.windows = step.windows
        return logits[: len(completing)]

    def _height(self, rows: int, *, single: bool) -> int:
        rows = max(rows, LEAST_ROWS)
        return self.recorded.height(rows) if single and self.recorded else rows

    def _told(self, shares: Sequence[Share], rows: list[list[int]], padding: int) -> tuple[Tensor, Tensor, StepContext]:
        """Tell the device all of a step: `rows` are its tokens, those whose logits are wanted, places and positions."""
        slabs = [] if self.varlen else _slabs(shares)
        parts = self._parts(shares, padding) if self.varlen else []
        lists = [*(slab.numbers for slab in slabs), *(numbers(part, self.arena.scrap + 1) for part in parts)]
        sent = iter(self.staging.send(*rows, *chain(*lists)))
        tokens, keep = next(sent), next(sent)
        step = StepContext(
            arena=self.arena,
            places=next(sent),
            positions=next(sent),
            groups=[slab.group(next(sent), next(sent), next(sent)) for slab in slabs],
            pieces=[] if self.varlen else _pieces(shares),
            lengths=[self._lengths(part, next(sent), next(sent), next(sent)) for part in parts],
        )
        return tokens, keep, step

    def _parts(self, shares: Sequence[Share], padding: int) -> list[list[Member]]:
        """Single tokens, and pieces of prompts; rows that only fill the step up go with the last of them."""
        members = [Member(_extent(share).start, share.count, share.sequence.computed + share.count) for share in shares]
        singles = sum(share.count == 1 for share in shares)
        nobody = [Member(self.arena.scrap, 1, 1)] * padding
        if singles == len(members):
            return [members + nobody]
        return [part for part in (members[:singles], members[singles:] + nobody) if part]

    def _lengths(self, part: list[Member], queries: Tensor, starts: Tensor, used: Tensor) -> Lengths:
        return Lengths(
            rows=sum(member.rows for member in part),
            longest=max(member.rows for member in part),
            context=self.context_length,
            queries=queries.int(),
            starts=starts.int(),
            used=used.int(),
        )

    def reset(self) -> None:
        """See Runner."""
        self.memory.rebuild()
        self.relieve()

    def relieve(self) -> None:
        """See Runner."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def rest(self) -> int:
        """See Runner."""
        freed = self.arena.bytes
        if self.recorded:
            self.recorded.forget()
        self.arena.free()
        self.memory.rebuild()
        return freed

    def rise(self) -> None:
        """See Runner."""
        self.arena.allocate()
        if self.recorded:
            self._record_again(self.recorded)

    def _record_again(self, recorded: Recorded) -> None:
        try:
            recorded.record()
        # It went well before, and steps are computed without it too.
        except Exception:
            _logger.exception("steps are not recorded any more")
            self.recorded = None


@dataclass
class _Slab:
    """The decoding rows in one slab of extents, before the device is told; see DecodeGroup."""

    first: Extent
    rows: list[int] = field(default_factory=list)
    extents: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    @property
    def numbers(self) -> tuple[list[int], list[int], list[int]]:
        """What the device is told."""
        return self.rows, self.extents, self.positions

    def group(self, rows: Tensor, extents: Tensor, positions: Tensor) -> DecodeGroup:
        """With the numbers as they stand there."""
        return DecodeGroup(
            base=self.first.base,
            capacity=self.first.capacity,
            rows=rows,
            extents=extents,
            positions=positions,
            span=1 + max(self.extents),
            reach=1 + max(self.positions),
        )


def _pieces(shares: Sequence[Share]) -> list[Piece]:
    found: list[Piece] = []
    row = 0
    for share in shares:
        if share.count > 1:
            found.append(Piece(_extent(share).start, row, share.count, share.sequence.computed))
        row += share.count
    return found


def _slabs(shares: Sequence[Share]) -> list[_Slab]:
    found: dict[int, _Slab] = {}
    for row, share in enumerate(share for share in shares if share.count == 1):
        extent = _extent(share)
        slab = found.get(extent.slab) or found.setdefault(extent.slab, _Slab(extent))
        slab.rows.append(row)
        slab.extents.append(extent.index)
        slab.positions.append(share.sequence.computed)
    return list(found.values())


def _extent(share: Share) -> Extent:
    assert share.sequence.extent is not None
    return share.sequence.extent


def _padded(completing: list[int]) -> list[int]:
    filler = completing[-1] if completing else 0
    return completing + [filler] * max(0, LEAST_ROWS - len(completing))
