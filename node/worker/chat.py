"""From a request to the ids of its prompt.

1. The model's own chat template decides; one that cannot take these messages is the client's error, with the template's reason.
2. Its clock is the request's `created`, in UTC: the same request gives the same prompt on every node, today and tomorrow.
3. A message's text stays text: what looks like a control token in it is not one.
4. A model without a template gets one of `node.worker.templates` when it is loaded.
5. Tools are shown to the template while they may be called; calls in earlier messages get their arguments as objects, as
   templates expect them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from transformers.utils.chat_template_utils import _compile_jinja_template

from mesh.errors import BadRequest

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest


def param_of(request: InferenceRequest) -> str:
    """The field that holds the prompt, for errors about it."""
    return "messages" if request.task == "chat" else "prompt"


class Prompts:
    """Makes prompts for one model. `vocabulary` is the number of rows of its embedding."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self.template: str = tokenizer.get_chat_template()

    def ids(self, request: InferenceRequest) -> list[int]:
        """The prompt's token ids, at least one. Raises BadRequest."""
        match request.task:
            case "chat":
                ids = self._chat(request)
            case "completion":
                ids = self._completion(request)
            case other:
                raise BadRequest(f"this model does not do the task {other}", code="unsupported_task", param="task")
        if not ids:
            raise BadRequest("the prompt is empty", param=param_of(request))
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise BadRequest(f"token id {token} is not in the vocabulary of {self._vocabulary}", param=param_of(request))
        return ids

    def _completion(self, request: InferenceRequest) -> list[int]:
        prompt = request.prompt
        if not prompt:
            raise BadRequest("the prompt is empty", param="prompt")
        if isinstance(prompt, str):
            ids: list[int] = self._tokenizer(prompt).input_ids
            return ids
        return list(prompt)

    def _chat(self, request: InferenceRequest) -> list[int]:
        if not request.messages:
            raise BadRequest("there are no messages", param="messages")
        messages = [_with_objects(_as_text(message, index)) for index, message in enumerate(request.messages)]
        tools = request.tools if request.tool_choice != "none" else []
        if tools and "tools" not in self.template:
            raise BadRequest("the model's chat template has no place for tools", code="unsupported_parameter", param="tools")
        try:
            self._set_clock(request.created)
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self.template,
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        # A template is a program of the model's authors; whatever it raises, it raises because of these messages.
        except Exception as error:
            raise BadRequest(
                f"the model's chat template does not take these messages: {error}", code="invalid_messages", param="messages"
            ) from error
        return ids

    def _set_clock(self, created: int) -> None:
        """Let the template's `strftime_now` tell this time. Functions cannot be arguments, so it goes to the globals."""
        if "strftime_now" in self.template:
            now = datetime.fromtimestamp(created, UTC)
            _compile_jinja_template(self.template).environment.globals["strftime_now"] = now.strftime


def _as_text(message: dict[str, Any], index: int) -> dict[str, Any]:
    """The message with a list of text parts joined; templates expect a string."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts: list[str] = []
    for place, part in enumerate(content):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise BadRequest(
                "this model reads text only", code="unsupported_content", param=f"messages[{index}].content[{place}]"
            )
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as objects; OpenAI sends them as JSON texts."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "content": message.get("content") or "", "tool_calls": [_call_with_object(call) for call in calls]}


def _call_with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
