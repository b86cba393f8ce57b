"""The rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mesh", "node", "gateway", "bootstrap")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """The top-level packages that a module imports, wherever in the file."""
    found: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            found |= {name.name.split(".")[0] for name in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            found.add(item.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_packages_have_one_door(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    used = imports(path)
    if not where.startswith("node/worker/"):
        assert not used & {"torch", "transformers", "tokenizers", "safetensors"}
    if not where.startswith("mesh/transport/libp2p"):
        assert not used & {"libp2p", "multiaddr"}
    if where != "mesh/discovery/mdns.py":
        assert "zeroconf" not in used


def test_every_source_file_says_what_it_is() -> None:
    silent = [str(path) for path in sources(*PACKAGES) if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_documents_link_to_files_that_exist() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


@pytest.mark.parametrize("module", ["gateway.life", "bootstrap.life", "bootstrap.command", "node.app"])
def test_programs_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.split('.')[0] in ('torch', 'transformers') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
