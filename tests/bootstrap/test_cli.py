import json
import os
import subprocess
import sys

import pytest
import trio

from bootstrap.config import BootstrapConfig
from mesh.identity import Identity
from mesh.peer import Peer, PeerSettings
from mesh.transport.libp2p import Libp2pTransport


@pytest.fixture
def start(tmp_path):
    processes = []

    def start(*argv):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bootstrap",
                "--no-mdns",
                "--mesh",
                "cli",
                "--state-dir",
                str(tmp_path / str(len(processes))),
                *argv,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("INFERMESH_")},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


LOOPBACK = ("--listen", "/ip4/127.0.0.1/tcp/0")


def ready(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def test_its_port_is_fixed_by_default():
    assert BootstrapConfig().listen == ["/ip4/0.0.0.0/tcp/4001"]


async def test_it_brings_two_peers_together(start, nursery):
    """A node and a gateway that know the bootstrap peer alone find each other, and keep each other when it leaves."""
    process = start(*LOOPBACK)
    said = await trio.to_thread.run_sync(ready, process)
    assert (said["role"], said["http"]) == ("bootstrap", None)
    peers = {}
    for role in ("node", "gateway"):
        identity = Identity.generate()
        settings = PeerSettings(identity=identity, role=role, name=role, mesh="cli", bootstrap=said["addresses"])
        peers[role] = Peer(settings, Libp2pTransport(identity, ["/ip4/127.0.0.1/tcp/0"]))
        await nursery.start(peers[role].run)
    node, gateway = peers["node"], peers["gateway"]
    with trio.fail_after(20):
        while node.identity.peer_id not in gateway.links:  # noqa: ASYNC110 - it is other peers that are waited for
            await trio.sleep(0.02)
    assert gateway.registry.peers[node.identity.peer_id].record.name == "node"
    assert gateway.registry.peers[said["peer_id"]].record.role == "bootstrap"

    process.terminate()
    assert await trio.to_thread.run_sync(process.wait, 20) == 0
    with trio.fail_after(20):
        while said["peer_id"] in gateway.links:  # noqa: ASYNC110 - as above
            await trio.sleep(0.02)
    assert node.identity.peer_id in gateway.links
    nursery.cancel_scope.cancel()


def test_a_taken_port_is_named(start):
    first = ready(start(*LOOPBACK))
    port = first["addresses"][0].split("/")[4]
    second = start("--listen", f"/ip4/127.0.0.1/tcp/{port}")
    _, err = second.communicate(timeout=40)
    assert second.returncode == 2
    assert err.startswith("mesh-bootstrap: ")
    assert port in err
    assert len(err.splitlines()) == 1
