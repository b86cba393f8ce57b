"""The keys of servers that a backend talks to: from the environment or a file, never from the configuration itself.

A provider's usual variable counts for the provider's own address alone: no key is sent to a server that it is not meant for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from node.backends.settings import BackendSettings

MAX_KEY = 4096
_USUAL = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY", "huggingface.co": "HF_API_TOKEN"}


def key_of(settings: BackendSettings, url: str) -> str | None:
    """The server's key; None when it gets none. Raises Misconfigured when it is not where the settings say."""
    if settings.api_key_env and settings.api_key_file:
        raise Misconfigured(f"{settings.where('api_key_file')}: api_key_env says where the key is, too; leave one of them out")
    if settings.api_key_file:
        return _from_file(settings)
    if settings.api_key_env:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise Misconfigured(
                f"{settings.where('api_key_env')}: the variable {settings.api_key_env} is empty; set it to the key"
            )
        return _checked(settings, "api_key_env", key)
    host = urlsplit(url).hostname or ""
    usual = next((name for ours, name in _USUAL.items() if host == ours or host.endswith("." + ours)), None)
    key = os.environ.get(usual, "").strip() if usual else ""
    return _checked(settings, "api_key_env", key) if key else None


def _from_file(settings: BackendSettings) -> str:
    path = settings.api_key_file
    assert path is not None
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise Misconfigured(f"{settings.where('api_key_file')}: cannot read {path}: {reason}") from error
    if not key:
        raise Misconfigured(f"{settings.where('api_key_file')}: {path} is empty; write the key into it")
    return _checked(settings, "api_key_file", key)


def _checked(settings: BackendSettings, name: str, key: str) -> str:
    if len(key) > MAX_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise Misconfigured(f"{settings.where(name)}: what it holds is not a key: one line of printable characters")
    return key
