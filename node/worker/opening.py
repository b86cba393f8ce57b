"""From a model directory to what serves it: a model for text, which embeds too where it can, or one for embeddings alone.

1. A directory with the files of sentence-transformers, or whose model has no head for text, is for embeddings.
2. A model for text is asked for one vector at the start; where that fails it does not offer any.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import transformers
from transformers import AutoModel

from mesh.errors import Misconfigured
from mesh.messages.worker import Loading, Ready
from mesh.version import __version__
from node.worker.device import pick_device, pick_dtype
from node.worker.digest import numerics_digest, weights_digest
from node.worker.directory import ModelDirectory, open_directory
from node.worker.embedding.embedder import Embedder
from node.worker.embedding.engine import MOST, EmbeddingEngine
from node.worker.embedding.intake import EmbeddingIntake
from node.worker.embedding.pooling import MODULES, Pooling, pooling_of
from node.worker.loader import load_text
from node.worker.reading import read_model, read_tokenizer
from node.worker.serving import Serving, ServingIntake
from node.worker.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.worker.loader import Loaded, Options

_logger = logging.getLogger(__name__)

DEFAULT_LENGTH = 512
"""Tokens of an input where nothing says how many a model takes."""
HEADLESS = ("Model", "ForMaskedLM")
"""How the names of architectures end that do not generate."""
LMHEAD = "LMHeadModel"
POOLER = "pooler."
"""An encoder's head for other tasks; it is often missing, and never used here."""


def open_model(options: Options, report: Callable[[Loading], None]) -> tuple[Serving, Ready]:
    """Load a model and produce something with it. Raises Misconfigured."""
    report(Loading(done=0, total=0, phase="checking"))
    directory = open_directory(options.path)
    if _is_for_embeddings(directory):
        if options.adapters:
            raise Misconfigured(f"{', '.join(options.adapters)}: adapters of a model for embeddings cannot be served; merge them")
        if options.weights != "auto":
            raise Misconfigured(
                f"--weights {options.weights} is for models that generate text, and this one embeds; leave it out"
            )
        return _embedding(directory, options, report)
    return _text(load_text(options, report), queue=options.limits.queue)


def _is_for_embeddings(directory: ModelDirectory) -> bool:
    names = [str(name) for name in directory.config.get("architectures") or ()]
    headless = bool(names) and all(name.endswith(HEADLESS) and not name.endswith(LMHEAD) for name in names)
    return headless or (directory.path / MODULES).is_file()


def _text(loaded: Loaded, *, queue: int) -> tuple[Serving, Ready]:
    engine, ready = loaded.engine, loaded.ready
    weights = Weights(loaded.model, loaded.model.device)
    embedder = Embedder(loaded.model, Pooling(mode="last"), hidden=loaded.hidden)
    try:
        embedder.embed([[0]], [None])
    # Modelling code may keep its hidden states to itself, or need more than ids.
    except Exception as error:  # noqa: BLE001 - the model is served without embeddings then
        _logger.info("the model gives no embeddings: %r", error)
        return Serving(engine, None, ServingIntake(engine.intake, None), queue=queue, weights=weights), ready
    intake = EmbeddingIntake(
        loaded.tokenizer,
        vocabulary=ready.vocabulary,
        context_length=ready.context_length,
        dimensions=embedder.dimensions,
    )
    embeddings = EmbeddingEngine(embedder, queue=queue)
    serving = Serving(engine, embeddings, ServingIntake(engine.intake, intake), queue=queue, weights=weights)
    return serving, msgspec.structs.replace(ready, tasks=[*ready.tasks, "embedding"])


def _embedding(directory: ModelDirectory, options: Options, report: Callable[[Loading], None]) -> tuple[Serving, Ready]:
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, directory, device.device)
    tokenizer = read_tokenizer(directory)
    model = read_model(directory, dtype, device, report, kind=AutoModel, spare=POOLER)
    report(Loading(done=0, total=0, phase="warming up"))
    pooling = pooling_of(directory.path, decoder=any(getattr(module, "is_causal", False) for module in model.modules()))
    length = _length(model, pooling, options)
    embedder = Embedder(model, pooling)
    try:
        embedder.embed([[0]], [None])
    except Exception as error:
        raise Misconfigured(
            f"the model in {directory.path} loads and gives no vectors ({type(error).__name__}: {error}); use another model"
        ) from error
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    intake = EmbeddingIntake(
        tokenizer, vocabulary=vocabulary, context_length=length, dimensions=embedder.dimensions, prompt=pooling.prompt
    )
    queue = options.limits.queue
    weights = Weights(model, device.device)
    serving = Serving(None, EmbeddingEngine(embedder, queue=queue), ServingIntake(None, intake), queue=queue, weights=weights)
    digest = weights_digest(directory)
    name = str(dtype).removeprefix("torch.")
    versions = (__version__, torch.__version__, transformers.__version__, type(tokenizer).__name__)
    ready = Ready(
        context_length=length,
        vocabulary=vocabulary,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        slots=MOST,
        device=str(device.device),
        device_name=device.name,
        device_memory=device.memory,
        dtype=name,
        weights_digest=digest,
        numerics=numerics_digest(digest, str(pooling), name, device.device.type, *versions),
        architecture=type(model).__name__,
        tasks=["embedding"],
    )
    return serving, ready


def _length(model: Any, pooling: Pooling, options: Options) -> int:
    """Tokens of an input, at most: what the model has positions for, what it was made for, what the operator wants."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    # Models of RoBERTa's kind count positions from behind the padding's number.
    if (padding := getattr(table, "padding_idx", None)) is not None:
        positions -= padding + 1
    if options.context and options.context > positions:
        raise Misconfigured(f"--context {options.context} is more than the {positions} positions that the model knows")
    return min(positions, pooling.longest or positions, options.context or positions)
