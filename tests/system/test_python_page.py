"""The code on the page about Python, run as it stands there: only the names of a mesh, an address and a model are put in."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from tests.fleet import Program

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = "/ip4/192.168.1.5/tcp/4001/p2p/12D3KooW..."

BACKEND = """
from mesh.messages.inference import Done, InferenceRequest, Performance, Usage

class Mine:
    async def infer(self, request, emit):
        emit(Done("stop", Usage(1, 1), Performance(0, 0, 0, 0, 1)))

instance, emit = Mine(), print
request = InferenceRequest(request_id="1", model="m", messages=[])
"""
THREADED = """
import asyncio
from mesh.client import MeshClient
messages = [{"role": "user", "content": "Hello"}]
"""


def program(block: str, mesh: str, bootstrap: Program) -> str:
    """A block as a whole program."""
    placed = block.replace("some-model", "model-a").replace(
        f'MeshClient(bootstrap=["{ADDRESS}"])', f'MeshClient(bootstrap=["{ADDRESS}"], mdns=False, mesh="{mesh}")'
    )
    placed = placed.replace('"enable_mdns": True', f'"enable_mdns": False, "mesh": "{mesh}"').replace(ADDRESS, bootstrap.address)
    if "asyncio." in block:
        options = f'bootstrap=["{bootstrap.address}"], mdns=False, mesh="{mesh}"'
        inner = f"async def main(client):\n{textwrap.indent(placed, '    ')}    return answer\n"
        return f"{THREADED}{inner}with MeshClient.sync({options}) as client:\n    assert asyncio.run(main(client)).text\n"
    if "trio.run(" in block:
        return placed
    before = BACKEND if "register_backend" in block else ""
    return f"{before}\nimport trio\nasync def main():\n{textwrap.indent(placed, '    ')}\ntrio.run(main)\n"


@pytest.mark.timeout(120)
async def test_the_code_on_the_page_runs(fleet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    node = await fleet.mock("model-a", "--no-mdns", "--bootstrap", bootstrap.address)
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text())
    printed: dict[int, str] = {}

    async def run(number: int, block: str) -> None:
        script = tmp_path / f"block-{number}.py"
        script.write_text(program(block, fleet.mesh, bootstrap))
        command = [sys.executable, str(script)]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr.decode()) == (0, ""), block
        printed[number] = done.stdout.decode()

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for number, block in enumerate(blocks):
                nursery.start_soon(run, number, block)
    assert re.search(rf"2 \d+ {node.ready['peer_id']}$", printed[0].strip())
    assert "total_backends" in printed[2]
    assert len(blocks) == 4
