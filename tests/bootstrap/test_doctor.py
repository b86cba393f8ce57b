import json
import socket
import time

import pytest
import trio

from bootstrap import doctor
from bootstrap.doctor import DoctorSettings, examine
from mesh.client import LibP2PInferenceNode
from mesh.discovery.announcement import decode
from mesh.errors import Misconfigured, Unavailable
from mesh.identity import Identity
from mesh.invite import issue
from mesh.keyring import FILE, Keyring
from mesh.messages.record import Hardware
from mesh.transport.libp2p import Libp2pTransport

REAL_MDNS = doctor.Mdns.run
REAL_MESH = doctor._mesh


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    async def hardware(device):
        return Hardware(device="cpu", device_name="A Processor", memory_bytes=2**33, cpu_count=2)

    async def hear_at_once(self, found, *, task_status):
        found(decode(self._text()))
        task_status.started()
        await trio.sleep_forever()

    async def no_look(settings):
        return doctor.Finding("mesh", "ok", "not looked into")

    monkeypatch.setattr(doctor, "_mesh", no_look)
    monkeypatch.setattr(doctor, "discover", hardware)
    monkeypatch.setattr(doctor.Mdns, "run", hear_at_once)


async def findings(gateway="http://127.0.0.1:1", **settings):
    found = await examine(DoctorSettings(gateway=gateway, **{"ports": {}, **settings}))
    return {finding.check: finding for finding in found}


async def test_a_good_machine(small_mesh):
    found = await findings(small_mesh.url)
    assert {name: found[name].result for name in ("python", "installation", "device", "gateway")} == dict.fromkeys(
        ("python", "installation", "device", "gateway"), "ok"
    )
    assert found["device"].message == "cpu: A Processor, 8 GiB, 2 cores"
    assert found["gateway"].message == f"{small_mesh.url} is healthy, version 0.1.0"


async def test_mdns_is_really_tried(monkeypatch):
    monkeypatch.setattr(doctor.Mdns, "run", REAL_MDNS)
    found = (await findings())["mdns"]
    assert found.result in ("ok", "warn")
    assert (found.advice == "") == (found.result == "ok")


async def test_mdns_that_cannot_listen(monkeypatch):
    async def refuse(self, found, *, task_status):
        raise Unavailable("mDNS finds no network interface that takes multicast")

    monkeypatch.setattr(doctor.Mdns, "run", refuse)
    found = (await findings())["mdns"]
    assert (found.result, found.message) == ("warn", "mDNS finds no network interface that takes multicast")


async def test_mdns_that_nobody_hears(monkeypatch):
    async def silent(self, found, *, task_status):
        task_status.started()
        await trio.sleep_forever()

    monkeypatch.setattr(doctor.Mdns, "run", silent)
    monkeypatch.setattr(doctor, "MDNS_LIMIT", 0.1)
    found = (await findings())["mdns"]
    assert found.result == "warn"
    assert "no answer within 0.1 s" in found.message
    assert "--bootstrap" in found.advice


async def test_a_missing_extra_and_a_bad_installation(monkeypatch):
    def refuse():
        raise Misconfigured("the package 'node' is another project's; install infermesh elsewhere")

    monkeypatch.setattr(doctor, "check_installation", refuse)
    monkeypatch.setattr(doctor, "_EXTRAS", ("json", "no_such_package"))
    monkeypatch.setattr(doctor, "_OLDEST_PYTHON", (99, 0))
    found = await findings()
    assert "no_such_package is missing" in found["models"].message
    assert found["models"].result == "warn"
    assert (found["installation"].result, found["installation"].advice) == ("fail", "install infermesh elsewhere")
    assert found["python"].result == "fail"


async def test_ports():
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        in_use, unused = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        found = await findings(ports={in_use: "gateway", unused: "bootstrap"})
    assert found[f"port {in_use}"].result == "warn"
    assert "another port with --port" in found[f"port {in_use}"].advice
    assert found[f"port {unused}"].result == "ok"


async def test_a_bootstrap_peer_that_answers(nursery):
    async def hold(channel):
        await trio.sleep_forever()

    transport = Libp2pTransport(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"])
    await nursery.start(transport.run, hold)
    address = transport.addresses[0]
    found = (await findings(bootstrap=[address]))[f"bootstrap {address[-12:]}"]
    assert (found.result, found.message) == ("ok", f"{address} answers")
    nursery.cancel_scope.cancel()


async def test_a_bootstrap_peer_that_does_not(monkeypatch):
    peer_id = Identity.generate().peer_id
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{peer_id}"
        found = (await findings(bootstrap=[address]))[f"bootstrap {peer_id[-12:]}"]
        assert found.result == "fail"
        assert "is it running" in found.advice
        silent.listen()
        monkeypatch.setattr(doctor, "DIAL_LIMIT", 0.2)
        found = (await findings(bootstrap=[address]))[f"bootstrap {peer_id[-12:]}"]
        assert "did not answer within 0.2 s" in found.message


async def test_a_bootstrap_address_that_is_none():
    found = (await findings(bootstrap=["host:4001"]))["bootstrap host:4001"]
    assert (found.result, found.advice) == ("fail", "copy the address from the peer's ready line")


@pytest.fixture
def look(monkeypatch):
    monkeypatch.setattr(doctor, "_mesh", REAL_MESH)
    monkeypatch.setattr(doctor, "JOIN_LIMIT", 4.0)
    monkeypatch.setattr(doctor, "TABLE_LIMIT", 30.0)


async def test_a_look_into_a_mesh_tells_who_is_there(look, nursery):
    async def words(request):
        yield "word"

    node = LibP2PInferenceNode({"enable_mdns": False, "mesh": "doctor-test", "listen": ["/ip4/127.0.0.1/tcp/0"]})
    await node.start()
    node.register_model("words", words)
    try:
        found = (await findings(bootstrap=[node.addresses[0]], mesh="doctor-test"))["mesh doctor-test"]
    finally:
        await node.stop()
    assert found.result == "ok"
    assert found.message.startswith("1 node found, serving words; the DHT has 1 in its table")


async def test_a_look_into_a_mesh_says_why_nobody_is_found(look):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
        found = (await findings(bootstrap=[address], mesh="nobody-here"))["mesh nobody-here"]
    assert found.result == "fail"
    assert f"Bootstrap {address} could not be used" in found.message
    assert "Nothing listens there" in found.message


@pytest.fixture
async def private(tmp_path):
    """A member of a private mesh that serves a model; `invite` makes a token of its key, or of another one."""

    async def words(request):
        yield "word"

    options = {"enable_mdns": False, "mesh": "ours", "private": True, "state_dir": tmp_path, "listen": ["/ip4/127.0.0.1/tcp/0"]}
    member = LibP2PInferenceNode(options)
    await member.start()
    member.register_model("words", words)

    def invite(*, mesh="ours", expires=3600.0, stranger=False):
        keyring = Keyring(None, mesh) if stranger else Keyring.read(tmp_path / FILE)
        key = keyring.rotate() if stranger else keyring.current
        return issue(key, mesh, member.addresses, time.time() + expires)

    member.invite = invite
    yield member
    await member.stop()


async def test_a_good_invite_is_read_tried_and_never_repeated(look, private):
    token = private.invite()
    found = await findings(bootstrap=[token])
    assert found["invite 1"].result == "ok"
    assert found["invite 1"].message == (
        f"for the mesh 'ours' by way of {private.peer_id}, good for 60 minutes more by this machine's clock"
    )
    assert found[f"bootstrap {private.peer_id[-12:]}"].result == "ok"
    assert found["mesh ours"].result == "ok"
    assert found["mesh ours"].message.startswith("1 node found, serving words; the DHT has 1 in its table")
    assert token[20:60] not in str(found)


@pytest.mark.parametrize(
    ("fault", "check", "said", "advice"),
    [
        ({"expires": -7300}, "invite 1", "by this machine's clock it expired 2 hours ago", "fresh one: `mesh invite`"),
        ({"expires": -7300}, "mesh ours", "the invite has expired", "ask a member for a fresh one"),
        ({"stranger": True}, "mesh ours", "a key that this mesh does not have, or no longer", "ask a member"),
        ({"stranger": True, "mesh": "theirs"}, "mesh theirs", "a key that this mesh does not have", "ask a member"),
    ],
)
async def test_a_bad_invite_is_said_precisely(look, private, fault, check, said, advice):
    found = (await findings(bootstrap=[private.invite(**fault)]))[check]
    assert found.result == "fail"
    assert said in found.message
    assert advice in found.advice


async def test_an_invite_to_another_mesh_than_named_and_one_that_was_cut(look, private):
    found = (await findings(bootstrap=[private.invite()], mesh="mine"))["mesh mine"]
    assert "--mesh says 'mine', invite 1 says 'ours'" in found.message
    token = private.invite()
    found = await findings(bootstrap=[token[:-30], "x" + token])
    assert (found["invite 1"].result, found["invite 1"].message) == ("fail", "the content of the invite is broken")
    assert "copy it whole" in found["invite 1"].advice
    assert "neither an address (/ip4/...) nor an invite" in found[f"bootstrap of {len(token) + 1} characters"].message
    assert token[20:40] not in str(found)
    assert not any(name.startswith("mesh ") for name in found), "there is nothing left to try"


async def test_an_address_of_a_private_mesh_asks_for_an_invite(look, private):
    found = (await findings(bootstrap=private.addresses, mesh="ours"))["mesh ours"]
    assert (found.result, found.message) == ("fail", "that mesh is private")
    assert "--bootstrap INVITE" in found.advice


async def test_only_when_asked_a_mesh_is_looked_into():
    assert "mesh" not in await findings()
    assert "mesh" in await findings(mesh="some")


async def test_model_directories(tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    (good / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (good / "tokenizer.json").write_text("{}")
    (good / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    found = await findings(models={"good": good, "bad": tmp_path / "none"})
    assert found["model good"].result == "ok"
    assert found["model bad"].result == "fail"
    assert found["model bad"].advice


async def test_a_wanted_device_that_is_not_there():
    assert (await findings(device="cuda:0"))["device"].result == "fail"


async def test_no_gateway_is_a_failure_only_when_it_was_named():
    assert (await findings())["gateway"].result == "warn"
    assert (await findings(gateway_named=True))["gateway"].result == "fail"
