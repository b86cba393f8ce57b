"""The tools that a chat request offers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mesh.errors import BadRequest
from mesh.openai.free_form import check_free_form
from mesh.openai.types import MAX_TOOLS, ChatRequest, NamedTool, Tool

if TYPE_CHECKING:
    from mesh.messages.inference import ToolChoice

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def check_tools(body: ChatRequest) -> None:
    """Raises BadRequest."""
    tools = body.tools or []
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools has {len(tools)} entries; {MAX_TOOLS} are allowed", param="tools", code="out_of_range")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = _check_tool(tool, f"tools[{index}]")
        if name in names:
            raise BadRequest(f"tools[{index}].function.name: {name} is there twice", param=f"tools[{index}].function.name")
        names.add(name)
    choice, chosen = tool_choice(body)
    if choice == "required" and not tools:
        raise BadRequest("tool_choice asks for a tool, and there are no tools", param="tool_choice")
    if chosen is not None and chosen not in names:
        raise BadRequest(f"tool_choice names {chosen[:64]!r}, which is not among the tools", param="tool_choice")


def _check_tool(tool: Tool, path: str) -> str:
    if tool.type != "function":
        raise BadRequest(
            f"{path}.type is {tool.type[:40]!r}; only functions can be called here",
            param=f"{path}.type",
            code="unsupported_parameter",
        )
    if tool.function is None:
        raise BadRequest(f"{path}.function is required", param=f"{path}.function")
    if not _NAME.fullmatch(tool.function.name):
        raise BadRequest(
            f"{path}.function.name must be 1 to 64 letters, digits, dots, dashes or underscores", param=f"{path}.function.name"
        )
    check_free_form(tool.function.parameters, f"{path}.function.parameters")
    return tool.function.name


def tool_choice(body: ChatRequest) -> tuple[ToolChoice, str | None]:
    """The choice, and the function that must be called where it names one. Raises BadRequest."""
    match body.tool_choice:
        case None | "auto":
            return "auto", None
        case "none":
            return "none", None
        case "required":
            return "required", None
        case NamedTool(type="function", function=function) if function is not None:
            return "required", function.name
        case _:
            raise BadRequest(
                "tool_choice must be none, auto, required or {type: function, function: {name}}",
                param="tool_choice",
                code="unsupported_parameter",
            )
