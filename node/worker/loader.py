"""From a model directory to an engine that has generated its first token.

1. Everything that is wrong with the directory, the device or the model is `Misconfigured`: restarting would not help.
2. The cache takes at most half of the memory that is free once the weights are loaded, and no more than was asked for. Where that
   is little, the prefix cache is given up first, then room for running sequences down to one full context, then context.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import transformers

from mesh.errors import Misconfigured
from mesh.messages.worker import Loading, Ready
from mesh.version import __version__
from node.worker.attention import NAME, Inexact
from node.worker.cache.arena import ArenaShape, arena_shape
from node.worker.cuda.proof import faster
from node.worker.device import DeviceInfo, free_memory, pick_device, pick_dtype
from node.worker.digest import numerics_digest, rounded_digest, weights_digest
from node.worker.directory import ModelDirectory, open_directory
from node.worker.engine import Engine, Limits
from node.worker.fallback import GenerateRunner
from node.worker.fused.int8 import quantizes
from node.worker.fused.way import fastest, int8, modules
from node.worker.intake import Intake
from node.worker.lora.adapter import read_adapter
from node.worker.lora.layers import attach
from node.worker.lora.runner import AdaptedRunner
from node.worker.reading import first_line, read_model, read_tokenizer
from node.worker.runner import Room, Runner, SlotRunner
from node.worker.suitability import ROUNDED_AGREEMENT, check_configuration, check_model, check_state, probe
from node.worker.templates import ChatTemplate, get_template
from node.worker.threads import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from node.worker.embedding.embedder import Hidden
    from node.worker.fused.way import Way

_logger = logging.getLogger(__name__)

DEFAULT_CONTEXT = 8192
"""Tokens served when nobody asks for more: longer contexts cost slots."""
SHORTEST_CONTEXT = 256
WEIGHTS = ("auto", "int8")
MEMORY_SHARE = 0.5
PREFIX_SHARE = 0.25
"""The part of a scarce cache that is kept for prefixes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the operator chose. `context` None is as long as the model and the memory allow, at most DEFAULT_CONTEXT."""

    path: Path
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    """`int8` rounds those of linear layers; `auto` computes them in `dtype`."""
    try_threads: bool = False
    """Find out how many threads are best on a CPU, instead of using those that torch has now; see `node.worker.threads`."""
    slots: int = 16
    context: int | None = None
    cache_mib: int | None = None
    """Most memory for keys and values; None leaves it to what is free."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """LoRA adapters to serve beside the model: their directories by the name that requests ask for."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that generated its first token, and what it was made of."""

    engine: Engine
    ready: Ready
    model: Any
    tokenizer: Any
    hidden: Hidden | None
    """What takes the place of the model's own modules, where these gave their weights away."""


def load(options: Options, report: Callable[[Loading], None]) -> tuple[Engine, Ready]:
    """Load a model and generate one token with it. Raises Misconfigured."""
    loaded = load_text(options, report)
    return loaded.engine, loaded.ready


def load_text(options: Options, report: Callable[[Loading], None]) -> Loaded:
    """The same, with all that it was made of."""
    report(Loading(done=0, total=0, phase="checking"))
    directory = open_directory(options.path)
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, directory, device.device)
    tokenizer = read_tokenizer(directory)
    stand_in = _stand_in(directory, tokenizer)
    rounds = _rounds(options, device)
    model = read_model(directory, dtype, device, report)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report(Loading(done=0, total=0, phase="warming up"))
    adapters = [read_adapter(name, path) for name, path in options.adapters.items()]
    selection = attach(model, adapters)
    runner: Runner
    try:
        runner, way = _rounded_runner(model, options) if rounds else _runner(model, options, fastest)
    except _Spoilt as reason:
        _logger.error("the fast way of computing this model is not used: %s; please report this", reason)  # noqa: TRY400
        model = read_model(directory, dtype, device, report)
        selection = attach(model, adapters)
        runner, way = _runner(model, options, modules)
    if isinstance(runner, SlotRunner):
        names = faster(runner, _vocabulary(model), device_name=device.name, adapted=bool(adapters))
        way = " ".join([way, *names])
    threads = _threads(runner, options, _vocabulary(model))
    hidden = getattr(runner.forward, "hidden", None) if isinstance(runner, SlotRunner) else None
    if adapters:
        runner = AdaptedRunner(runner, selection)
    ends = end_tokens(model, tokenizer, stand_in)
    intake = Intake(
        tokenizer,
        vocabulary=_vocabulary(model),
        end_tokens=ends,
        context_length=runner.context_length,
        adapters={adapter.name: number for number, adapter in enumerate(adapters, start=1)},
    )
    engine = Engine(runner, intake, limits=options.limits)
    _warm_up(engine, options.path)
    digest = weights_digest(directory)
    if rounds:
        digest = rounded_digest(digest, options.weights)
    ready = _ready(digest, model, tokenizer, ends, runner, device, parameters, way)
    ready = msgspec.structs.replace(
        ready,
        weights=options.weights if rounds else "",
        threads=threads,
        adapters={adapter.name: adapter.digest for adapter in adapters},
    )
    return Loaded(engine=engine, ready=ready, model=model, tokenizer=tokenizer, hidden=hidden)


def _warm_up(engine: Engine, path: Path) -> None:
    try:
        engine.warm_up()
    # Modelling code may fail in any way; a model that cannot say one token will not learn it in another process.
    except Exception as error:
        _logger.exception("the first token failed")
        raise Misconfigured(
            f"the model in {path} loads and cannot generate ({type(error).__name__}: {first_line(error)}); "
            "try another --dtype or --device, or use another model"
        ) from error


def _stand_in(directory: ModelDirectory, tokenizer: Any) -> ChatTemplate | None:
    """Give a tokenizer without a chat template one of ours; None when it has its own."""
    if tokenizer.chat_template:
        return None
    template = get_template(_names(directory))
    tokenizer.chat_template = template.text
    return template


def _names(directory: ModelDirectory) -> str:
    """What the model is called: by its folder, by its configuration."""
    config = directory.config
    return " ".join([directory.path.resolve().name, str(config.get("_name_or_path", "")), str(config.get("model_type", ""))])


class _Spoilt(Exception):
    """The model's weights were taken over by a way of computing it that is not right."""


def _runner(model: Any, options: Options, choose: Callable[[Any], Way]) -> tuple[Runner, str]:
    """What computes the model, and by which way. Raises _Spoilt when another way should be chosen for a fresh model."""
    longest = _longest(model, options)
    name = modules(model).name
    try:
        check_configuration(model)
        shape, room = _room(model, options, longest)
        expected = _expected(model)
        way = choose(model)
        name = way.name
        runner = SlotRunner(model, shape, room, forward=way.forward)
        _check(model, runner, expected)
    except Inexact as reason:
        if name != modules(model).name:
            raise _Spoilt(str(reason)) from reason
        _logger.warning("the model runs on plain generate, one request at a time: %s", reason)
        return _generating(model, options.context or min(longest, DEFAULT_CONTEXT)), "generate"
    return runner, name


def _rounds(options: Options, device: DeviceInfo) -> bool:
    """Whether weights are to be int8. Raises Misconfigured where that cannot be."""
    if options.weights not in WEIGHTS:
        raise Misconfigured(f"--weights {options.weights} is not known; use {' or '.join(WEIGHTS)}")
    if options.weights == "auto":
        return False
    if device.device.type != "cpu":
        raise Misconfigured(
            f"--weights int8 is for the CPU, and the model runs on {device.name}; leave it out, or add --device cpu"
        )
    if not quantizes():
        raise Misconfigured("--weights int8 needs a processor with VNNI instructions and a torch with oneDNN; leave it out")
    return True


def _rounded_runner(model: Any, options: Options) -> tuple[Runner, str]:
    """What computes the model with int8 weights, and by which way. Raises Misconfigured where they change too much."""
    longest = _longest(model, options)
    try:
        check_configuration(model)
        expected = _expected(model)
        # As it is first: next to rounding, attention that is only nearly right would not be noticed.
        few = Room(slots=1, context=SHORTEST_CONTEXT, slabs=1, prefixes=0)
        _check(model, SlotRunner(model, arena_shape(model, few.tokens), few), expected)
        way = int8(model)
        runner = SlotRunner(model, *_room(model, options, longest), forward=way.forward)
        _check(model, runner, expected, agreement=ROUNDED_AGREEMENT)
    except Inexact as reason:
        raise Misconfigured(f"--weights int8 does not suit the model in {options.path}: {reason}; leave it out") from reason
    return runner, way.name


def _longest(model: Any, options: Options) -> int:
    """The positions that the model knows. Raises Misconfigured when more are wanted."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    if options.context and options.context > longest:
        raise Misconfigured(f"--context {options.context} is more than the {longest} positions that the model knows")
    return int(longest)


def _threads(runner: Runner, options: Options, vocabulary: int) -> int:
    """How many threads compute from now on; 0 on an accelerator."""
    if runner.device.type != "cpu":
        return 0
    if options.try_threads and isinstance(runner, SlotRunner):
        return settle(runner, vocabulary)
    return torch.get_num_threads()


def _generating(model: Any, context_length: int) -> GenerateRunner:
    runner = GenerateRunner(model, context_length)
    runner.keeps_state = check_state(runner, probe(_vocabulary(model)))
    if not runner.keeps_state:
        _logger.warning("the model cannot go on from a state: every token computes the whole sequence again")
    return runner


def _expected(model: Any) -> Tensor:
    """The logits after the probe, by the model's own attention."""
    tokens = torch.tensor([probe(_vocabulary(model))], device=model.device)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0, -1]
    return logits


def _check(model: Any, runner: SlotRunner, expected: Tensor, *, agreement: float | None = None) -> None:
    """Compare what the model gave with what the runner gives, and leave our attention in place. Raises Inexact."""
    own = model.config._attn_implementation
    tokens = probe(_vocabulary(model))
    model.set_attn_implementation(NAME)
    try:
        check_model(runner, expected, config=model.config.get_text_config(), tokens=tokens, agreement=agreement)
    except Inexact:
        model.set_attn_implementation(own)
        raise
    # Modelling code that was never seen may take any offence at our attention.
    except Exception as error:
        model.set_attn_implementation(own)
        raise Inexact(f"slot attention breaks it: {first_line(error)}") from error


def _room(model: Any, options: Options, longest: int) -> tuple[ArenaShape, Room]:
    """Room for all slots to be full and as many tokens again of prefixes, or for as much as fits. Raises Misconfigured."""
    one = arena_shape(model, 1).bytes_per_token(model.dtype)
    memory = int(free_memory(model.device) * MEMORY_SHARE)
    if options.cache_mib is not None:
        memory = min(memory, options.cache_mib << 20)
    tokens = memory // one
    length = options.context or min(longest, DEFAULT_CONTEXT)
    while length > SHORTEST_CONTEXT and not options.context and length > tokens:
        length //= 2
    if length > tokens:
        raise Misconfigured(
            f"a context of {length} tokens needs {length * one >> 20} MiB beside the weights and {memory >> 20} MiB may be used; "
            "use a smaller --context or model"
        )
    slabs = max(1, min(options.slots, int(tokens * (1 - PREFIX_SHARE)) // length))
    room = Room(slots=options.slots, context=length, slabs=slabs, prefixes=min(slabs * length, tokens - slabs * length))
    _logger.info(
        "the cache has %d MiB: %d tokens for running requests (%d times the context of %d), and %d tokens of prefixes",
        room.tokens * one >> 20, slabs * length, slabs, length, room.prefixes,
    )  # fmt: skip
    return arena_shape(model, room.tokens), room


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def end_tokens(model: Any, tokenizer: Any, stand_in: ChatTemplate | None = None) -> frozenset[int]:
    """The ids that end an answer: whatever generation config, config and tokenizer name, and the end of a template of ours."""
    named: set[int] = set()
    for owner in (model.generation_config, model.config, model.config.get_text_config(), tokenizer):
        value = getattr(owner, "eos_token_id", None)
        named.update(value if isinstance(value, list) else [] if value is None else [value])
    end = tokenizer.get_vocab().get(stand_in.end) if stand_in else None
    named.update([] if end is None else [end])
    return frozenset(named)


def _ready(
    digest: str,
    model: Any,
    tokenizer: Any,
    ends: frozenset[int],
    runner: Runner,
    device: DeviceInfo,
    parameters: int,
    way: str,
) -> Ready:
    dtype = str(model.dtype).removeprefix("torch.")
    template = str(tokenizer.chat_template or "")
    versions = (__version__, torch.__version__, transformers.__version__, type(tokenizer).__name__)
    return Ready(
        context_length=runner.context_length,
        vocabulary=_vocabulary(model),
        parameters=parameters,
        slots=runner.slots,
        device=str(device.device),
        device_name=device.name,
        device_memory=device.memory,
        dtype=dtype,
        weights_digest=digest,
        numerics=numerics_digest(digest, template, str(sorted(ends)), dtype, device.device.type, way, *versions),
        architecture=type(model).__name__,
        batching=runner.batching,
    )
