"""What `mesh keys` takes on its command line and prints: a key on stdout, what is to be said about it on stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from bootstrap.api_keys import KeyFile
from bootstrap.tables import show
from mesh.errors import Misconfigured
from mesh.http.keys import Scope

if TYPE_CHECKING:
    import argparse

VARIABLE = "INFERMESH_API_KEYS"
SOON = "Programs that run with this file know it within seconds."


def add_kinds(kinds: argparse._SubParsersAction[Any]) -> None:
    """Add what can be done with keys."""
    add = _kind(kinds, "add", "make a key and print it, this once: the file keeps its hash")
    add.add_argument("name", metavar="NAME", help="of the key; it is the tenant of who shows it")
    scope_help = "infer to ask models, admin to change something; may be repeated (default: infer)"
    add.add_argument("--scope", action="append", choices=get_args(Scope), help=scope_help)
    add.set_defaults(act=_add)
    listing = _kind(kinds, "list", "the names and scopes of the keys")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(act=_list)
    revoke = _kind(kinds, "revoke", "take a key out of the file")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(act=_revoke)


def _kind(kinds: argparse._SubParsersAction[Any], name: str, text: str) -> argparse.ArgumentParser:
    kind: argparse.ArgumentParser = kinds.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    kind.add_argument("--api-keys", type=Path, metavar="FILE", help=f"the file (env: {VARIABLE})")
    return kind


def _file(arguments: argparse.Namespace) -> KeyFile:
    named = arguments.api_keys or os.environ.get(VARIABLE)
    if not named:
        raise Misconfigured(f"name the file of keys: --api-keys FILE, or {VARIABLE}")
    return KeyFile(Path(named).expanduser())


def _add(arguments: argparse.Namespace) -> int:
    scopes = list(dict.fromkeys(arguments.scope or ["infer"]))
    print(_file(arguments).add(arguments.name, scopes))
    said = f"note the key of {arguments.name!r}, good for {' and '.join(scopes)}: it is told only now. {SOON}"
    print(said, file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    callers = _file(arguments).callers()
    if arguments.json:
        keys = [{"name": caller.name, "scopes": caller.scopes} for caller in callers]
        print(msgspec.json.format(msgspec.json.encode({"keys": keys})).decode())
    else:
        show(("name", "scopes"), [(caller.name, ", ".join(caller.scopes)) for caller in callers])
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    left = _file(arguments).revoke(arguments.name)
    said = f"{left} left" if left else "none is left, so nobody gets in, and nothing starts with such a file: add one"
    print(f"{arguments.name!r} is revoked, {said}. {SOON}", file=sys.stderr)
    return 0
