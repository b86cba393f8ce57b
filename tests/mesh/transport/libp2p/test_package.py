from __future__ import annotations

import re
from pathlib import Path

import pytest

import mesh
from mesh.errors import Misconfigured
from mesh.transport import libp2p as package
from mesh.transport.libp2p import SUPPORTED, check_version


def test_another_version_does_not_load():
    check_version(SUPPORTED)
    with pytest.raises(Misconfigured, match=r"libp2p 0\.8\.2 is installed, but .* pip install libp2p==0\.8\.1"):
        check_version("0.8.2")


def test_nothing_else_imports_libp2p():
    root = Path(mesh.__file__).parent.parent
    door = Path(package.__file__).parent
    imports = re.compile(r"^\s*(from|import) (libp2p|multiaddr)\b", re.MULTILINE)
    files = [path for room in ("mesh", "node", "gateway", "bootstrap") for path in (root / room).rglob("*.py")]
    found = {path for path in files if imports.search(path.read_text())}
    assert found
    assert all(path.is_relative_to(door) for path in found)
