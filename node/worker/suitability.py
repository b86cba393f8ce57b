"""Whether slot attention computes a model exactly: asked of the configuration first, then of the model itself.

A nearly right answer is worse than a slow one, so every doubt sends the model to `node.worker.fallback`.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch

from node.worker.attention import Inexact
from node.worker.output.choice import computed_only
from node.worker.scheduler import Share
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.fallback import GenerateRunner
    from node.worker.runner import SlotRunner

_logger = logging.getLogger(__name__)

LAYER_TYPES = {"full_attention", "sliding_attention"}
UNSUPPORTED = ("attention_chunk_size", "alibi", "use_alibi", "layer_block_type", "layers_block_type")
"""Configuration keys that, set to anything, mean attention or layers of another kind."""
PROBE_LENGTH = 24
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference of two logits, as a part of their spread."""
ROUNDED_AGREEMENT = 0.15
"""The same for weights that were rounded to int8. Random and trained models were found between 0.005 and 0.04."""


def check_configuration(model: Any) -> None:
    """Raises Inexact when the configuration names something that slot attention does not do."""
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise Inexact("its attention cannot be replaced")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise Inexact("it computes the logits of all tokens")
    for key in UNSUPPORTED:
        if getattr(config, key, None):
            raise Inexact(f"its configuration has {key}")
    if others := set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES:
        raise Inexact(f"it has layers of the type {', '.join(sorted(others))}")
    for key in ("num_hidden_layers", "num_attention_heads"):
        if not getattr(config, key, None):
            raise Inexact(f"its configuration does not say {key}")


def probe(vocabulary: int) -> list[int]:
    """Some ids from all over the vocabulary."""
    return [(7 + 7919 * index) % vocabulary for index in range(PROBE_LENGTH)]


def check_model(runner: SlotRunner, expected: Tensor, *, config: Any, tokens: list[int], agreement: float | None = None) -> None:
    """Run a prompt in two pieces and one decoding step. Raises Inexact unless the last logits are `expected`.

    `expected` are the logits after the last of `tokens`, computed by the model's own attention. `agreement`: largest difference,
    as a part of their spread; what the type allows when left out.
    """
    sequence = _sequence(tokens)
    runner.memory.lend(sequence)
    for count in (len(tokens) // 2, len(tokens) - len(tokens) // 2 - 1, 1):
        with torch.inference_mode():
            logits = runner.run([Share(sequence, count)])
        sequence.computed += count
    runner.memory.release(sequence, keep=False)
    _check_windows(runner.windows, config)
    found = difference(logits[0], expected)
    if not found <= (agreement or AGREEMENT[runner.arena.keys.dtype]):
        raise Inexact(f"its logits differ by {found:.2g} of their spread")


def check_state(runner: GenerateRunner, tokens: list[int]) -> bool:
    """Whether going on from the state that `generate` returned gives the same logits as computing everything again."""
    going_on, afresh = _sequence(tokens[:-1]), _sequence(tokens)
    with torch.inference_mode():
        try:
            runner.run([Share(going_on, going_on.pending)])
            going_on.tokens, going_on.computed = tokens, len(tokens) - 1
            continued = runner.run([Share(going_on, 1)])
        # Models that take no state back say so in many ways.
        except Exception as error:  # noqa: BLE001 - the answer is the same for all of them
            _logger.info("going on from a state failed: %r", error)
            return False
        expected = runner.run([Share(afresh, afresh.pending)])
    runner.reset()
    return difference(continued, expected) <= AGREEMENT[expected.dtype]


def difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference of two logits, as a part of their spread."""
    spread = float(expected.max() - expected.min()) or 1.0
    return float((logits.float() - expected.float()).abs().max()) / spread


def _sequence(tokens: list[int]) -> Sequence:
    return Sequence(number=-1, tokens=tokens, prompt_length=len(tokens), choice=computed_only())


def _check_windows(windows: dict[int, int | None], config: Any) -> None:
    """Each layer must have asked for the sliding window that the configuration gives it."""
    if sorted(windows) != list(range(config.num_hidden_layers)):
        raise Inexact("not all of its layers use the replaced attention")
    size = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if size else "full_attention"] * len(windows)
    for layer, kind in enumerate(kinds):
        if windows[layer] != (size if kind == "sliding_attention" else None):
            raise Inexact(f"layer {layer} does not say which sliding window it has")
