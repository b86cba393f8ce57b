"""Functions of others, found by entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def plugin_names(group: str, ours: Iterable[str]) -> list[str]:
    """The names of all that are installed, ours included, sorted."""
    return sorted({*ours, *(found.name for found in entry_points(group=group))})


def load_plugin(name: str, *, group: str, kind: str, ours: Iterable[str], chapter: str) -> Callable[..., Any]:
    """The plug-in of that name. Raises Misconfigured, which lists the names or says why it cannot be loaded.

    `kind` is what people call it, `chapter` where docs/api.md says what it must be.
    """
    found = next(iter(entry_points(group=group, name=name)), None)
    if found is None:
        raise Misconfigured(f"unknown {kind} {name!r}; choose one of {', '.join(plugin_names(group, ours))}")
    try:
        plugin: Any = found.load()
    except Exception as error:
        raise Misconfigured(f"the {kind} {name!r} ({found.value}) cannot be loaded: {error!r}; mend or remove it") from error
    if not callable(plugin):
        raise Misconfigured(f"the {kind} {name!r} ({found.value}) is no function; see docs/api.md, {chapter}")
    return plugin  # type: ignore[no-any-return]  # whatever can be called; its caller checks what it gives
