"""How one model writes tool calls and thoughts, read off its chat template and vocabulary.

| style | a call |
| --- | --- |
| hermes | `<tool_call>` {"name", "arguments"} `</tool_call>`, any number |
| mistral | `[TOOL_CALLS]` and a list of the same; with `[ARGS]` in the vocabulary `[TOOL_CALLS]`name`[ARGS]`{...}, any number |
| llama3 | the whole answer is {"name", "parameters"}, maybe behind `<|python_tag|>`; several with `;` between them |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CallStyle = Literal["hermes", "mistral", "llama3"]

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"
PYTHON_TAG = "<|python_tag|>"
THINK_START, THINK_END = "<think>", "</think>"
_MARKERS = (CALL_START, CALL_END, CALLS, ARGS, PYTHON_TAG, THINK_START, THINK_END)
_PROMPT_TAIL = 8
"""Tokens at the end of a prompt that may hold the start of a thought."""


@dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """See the head of this file. `special` are the markers that are special tokens, which decoding would skip."""

    calls: CallStyle | None = None
    named_arguments: bool = False
    """Mistral's newer layout."""
    thinks: bool = False
    takes_tools: bool = False
    special: Mapping[int, str] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    """The markers that are one token, special or not."""

    def literal(self, marker: str) -> str:
        """The marker as a piece of a Lark grammar: its token, where it is one."""
        return f"<[{self.tokens[marker]}]>" if marker in self.tokens else f'"{marker}"'


def model_format(tokenizer: Any, template: str) -> ModelFormat:
    """Look at a tokenizer and the template that its model is used with."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return ModelFormat(
        calls=_style(template, vocabulary),
        named_arguments=ARGS in vocabulary,
        thinks=THINK_START in template or THINK_END in template,
        takes_tools="tools" in template,
        special={vocabulary[name]: name for name in _MARKERS if vocabulary.get(name) in special},
        tokens={name: vocabulary[name] for name in _MARKERS if name in vocabulary},
    )


def _style(template: str, vocabulary: Mapping[str, int]) -> CallStyle | None:
    if "tools" not in template:
        return None
    if CALL_START in template:
        return "hermes"
    if CALLS in template or CALLS in vocabulary:
        return "mistral"
    if PYTHON_TAG in template or PYTHON_TAG in vocabulary or '"parameters"' in template:
        return "llama3"
    return None


def begins_in_thought(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """The template has begun the thought already, so the answer starts inside it."""
    tail: str = tokenizer.decode(list(prompt[-_PROMPT_TAIL:]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return tail.rstrip().endswith(THINK_START)
