"""What a request may ask of the engine. Checked here as well as at the gateway: a link brings requests from anybody.

Every fault is a BadRequest that names the field.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mesh.errors import BadRequest
from node.worker.output.logprobs import MOST_ALTERNATIVES

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest

MOST_STOPS = 16
LONGEST_STOP = 1024
"""Bounds on stop strings, in number and characters."""
MOST_CHOICES = 128
MOST_BIASED = 1024
MOST_TOOLS = 128
_RANGES: dict[str, tuple[float, float]] = {
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, MOST_CHOICES),
}


def check_request(request: InferenceRequest, *, vocabulary: int) -> None:
    """Raises BadRequest."""
    _check_ranges(request)
    _check_bias(request, vocabulary)
    _check_contradictions(request)


def _check_ranges(request: InferenceRequest) -> None:
    if request.max_tokens is not None and request.max_tokens < 1:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
    if not 0 <= request.temperature < math.inf:
        raise BadRequest("temperature must be 0 or more", param="temperature")
    if not 0 < request.top_p <= 1:
        raise BadRequest("top_p must be above 0 and at most 1", param="top_p")
    if request.top_k < 0:
        raise BadRequest("top_k must be 0 (off) or more", param="top_k")
    if not 0 < request.repetition_penalty < math.inf:
        raise BadRequest("repetition_penalty must be above 0; 1 is off", param="repetition_penalty")
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(request, name) <= high:
            raise BadRequest(f"{name} must be between {low} and {high}", param=name)
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_ALTERNATIVES:
        raise BadRequest(f"at most {MOST_ALTERNATIVES} alternatives are told of each token", param="top_logprobs")
    if len(request.stop) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in request.stop):
        raise BadRequest(f"stop takes at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters", param="stop")
    if len(request.tools) > MOST_TOOLS:
        raise BadRequest(f"at most {MOST_TOOLS} tools can be offered", param="tools")


def _check_bias(request: InferenceRequest, vocabulary: int) -> None:
    if len(request.logit_bias) > MOST_BIASED:
        raise BadRequest(f"logit_bias takes at most {MOST_BIASED} tokens", param="logit_bias")
    for token, bias in request.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise BadRequest(f"logit_bias names token {token}; the vocabulary has {vocabulary}", param="logit_bias")
        if not -100 <= bias <= 100:
            raise BadRequest("a bias must be between -100 and 100", param="logit_bias")


def _check_contradictions(request: InferenceRequest) -> None:
    if request.min_tokens < 0 or (request.max_tokens is not None and request.min_tokens > request.max_tokens):
        raise BadRequest("min_tokens must be between 0 and max_tokens", param="min_tokens")
    if request.echo and request.task != "completion":
        raise BadRequest("echo is for completions", param="echo")
    if request.echo and request.logprobs is not None:
        raise BadRequest("logprobs of the prompt cannot be had; leave echo or logprobs out", param="echo")
    if request.tool_name is not None and request.tool_choice != "required":
        raise BadRequest("tool_name goes with tool_choice required", param="tool_choice")
    if request.tool_choice == "required" and not request.tools:
        raise BadRequest("tool_choice asks for a tool, and there are no tools", param="tool_choice")
    if request.grammar is None and request.tool_choice != "required":
        return
    # The output is promised to be whole and to fit; these would cut it, or never let it end.
    for name in ("stop", "min_tokens", "ignore_eos"):
        if getattr(request, name):
            raise BadRequest(f"{name} contradicts an output that must match a grammar; leave one of them out", param=name)
