"""`mesh invite` and `mesh rotate-key`: what a member's state folder lets its operator do for the whole mesh.

Neither talks to the member: it prints from, or changes, the key file, which the member looks at by itself.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured
from mesh.invite import issue
from mesh.keyring import FILE, GRACE, Keyring
from mesh.state import default_state_dir, read_addresses

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE_VARIABLE = "INFERMESH_STATE_DIR"


def invite(state_dir: Path, expires: float) -> str:
    """A token that is good for `expires` seconds. Raises Misconfigured when there is no key or no running member."""
    keyring = _keyring(state_dir)
    live = read_addresses(state_dir)
    if live is None:
        raise Misconfigured(f"no peer runs on {state_dir}, so nobody could answer an invite; start it, then invite")
    key = keyring.current
    assert key is not None
    return issue(key, keyring.mesh, live, time.time() + expires)


def rotate(state_dir: Path) -> str:
    """Make a new network key; what to tell the operator. Raises Misconfigured when there is none yet."""
    key = _keyring(state_dir).rotate()
    said = {
        "key_id": key.key_id,
        "old_keys_valid_for_hours": GRACE / 3600,
        "member_runs": read_addresses(state_dir) is not None,
    }
    return json.dumps(said)


def chosen_state_dir(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The flag, else the environment, else where `mesh-bootstrap` keeps its state."""
    from_environment = environ.get(STATE_VARIABLE)
    if given is None and from_environment:
        given = Path(from_environment)
    return (given or default_state_dir("bootstrap")).expanduser().absolute()


def _keyring(state_dir: Path) -> Keyring:
    keyring = Keyring.read(state_dir / FILE)
    if keyring is None:
        raise Misconfigured(
            f"{state_dir} holds no network key: name a private member's folder with --state-dir, "
            "or start the first one with --private"
        )
    return keyring
