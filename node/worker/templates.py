"""Chat templates: the tokenizer's own, else one of these, by the model's name.

1. A template of the model's own always wins.
2. Without one the longest registered name that occurs in the model's decides; Llama 3's layout stands in for all others.
3. More are installed under the entry point group `infermesh.templates`: the entry point's name is looked for in the model's,
   what it loads is a `ChatTemplate`. Ours win a clash; one that cannot be loaded is skipped, and the log says so.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "infermesh.templates"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja template as tokenizers have them, and the token that ends an answer."""

    text: str
    end: str


LLAMA3 = ChatTemplate(
    text=(
        "{{- '<|begin_of_text|>' }}"
        "{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + (message['content'] or '') | trim"
        " + '<|eot_id|>' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    end="<|eot_id|>",
)
CHATML = ChatTemplate(
    text=(
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    end="<|im_end|>",
)
BUILT_IN: Mapping[str, ChatTemplate] = {"llama3": LLAMA3, "qwen": CHATML, "chatml": CHATML, "hermes": CHATML}


class Templates:
    """The registered templates."""

    def __init__(self, templates: Mapping[str, ChatTemplate] = BUILT_IN) -> None:
        self._by_name = {_plain(name): template for name, template in templates.items()}

    def register(self, name: str, template: ChatTemplate) -> None:
        """Use `template` for models whose name has `name` in it. A name that is taken stays what it is."""
        self._by_name.setdefault(_plain(name), template)

    def get_template(self, model: str) -> ChatTemplate:
        """The template for a model that has none of its own."""
        plain = _plain(model)
        found = max((name for name in self._by_name if name and name in plain), key=len, default=None)
        return LLAMA3 if found is None else self._by_name[found]


def installed_templates() -> Templates:
    """Ours and those of installed packages."""
    templates = Templates()
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
        except Exception as error:  # noqa: BLE001 - somebody else's code; the other models must not suffer
            _logger.error("the chat template %s (%s) cannot be loaded: %r", point.name, point.value, error)  # noqa: TRY400
            continue
        if isinstance(loaded, ChatTemplate):
            templates.register(point.name, loaded)
        else:
            _logger.error("the chat template %s (%s) is no ChatTemplate; it is skipped", point.name, point.value)
    return templates


def get_template(model: str) -> ChatTemplate:
    """The template for a model that has none of its own, over all that are installed."""
    return installed_templates().get_template(model)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
