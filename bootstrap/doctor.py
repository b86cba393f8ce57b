"""`mesh doctor`: looks at what usually goes wrong, and says what to do about it.

1. A check never raises: it is ok, a warning (something is not there that only some roles need) or a failure.
2. All checks run at once; each has a bound, so the whole takes a few seconds.
"""

from __future__ import annotations

import errno
import importlib.util
import platform
import secrets
import socket
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from bootstrap.remote import Gateway
from mesh.addresses import peer_of
from mesh.config.addresses import check_bootstrap
from mesh.discovery import dht
from mesh.discovery.mdns import Mdns
from mesh.errors import Denied, MeshError, Misconfigured
from mesh.identity import Identity
from mesh.installation import check_installation
from mesh.invite import is_invite, read, unseal
from node.hardware import discover
from node.model_directory import check_model_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mesh.messages.record import Role
    from mesh.peer import Peer
    from mesh.transport.base import Channel

MDNS_LIMIT = 3.0
DIAL_LIMIT = 5.0
TABLE_LIMIT = 5.0
JOIN_LIMIT = 8.0
"""Seconds that the look into a mesh takes when it finds nobody."""

_EXTRAS = ("jinja2", "numpy", "safetensors", "tokenizers", "torch", "transformers")
_PORTS: Mapping[int, Role] = {8000: "gateway", 8100: "node", 8101: "node", 4001: "bootstrap"}
_OLDEST_PYTHON = (3, 11)


class Finding(msgspec.Struct, frozen=True):
    """What one check found. `advice` is empty when there is nothing to do."""

    check: str
    result: Literal["ok", "warn", "fail"]
    message: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What to look at. `gateway_named`: the operator named the gateway, so it should be there."""

    gateway: str
    gateway_named: bool = False
    bootstrap: Sequence[str] = field(default=(), repr=False)
    """Addresses and invites. Invites are secrets: no finding repeats one."""
    mesh: str | None = None
    """The mesh to look into. None: the invite's, else the default one, and only when one of `bootstrap` can be used."""
    models: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    ports: Mapping[int, Role] = field(default_factory=lambda: dict(_PORTS))


async def examine(settings: DoctorSettings) -> list[Finding]:
    """Run every check. Findings come in a fixed order; takes at most about `JOIN_LIMIT` seconds."""
    checks: list[Callable[[], Awaitable[Finding]]] = [
        _python,
        _installation,
        _extras,
        partial(_device, settings.device),
        *(partial(_port, port, role) for port, role in settings.ports.items()),
        _mdns,
        *(partial(_invite, number, text) for number, text in enumerate(filter(is_invite, settings.bootstrap), 1)),
        *(partial(_bootstrap, address) for address in _addresses(settings.bootstrap)),
        *([partial(_mesh, settings)] if _usable(settings) or settings.mesh is not None else []),
        *(partial(_model, name, path) for name, path in settings.models.items()),
        partial(_gateway, settings.gateway, settings.gateway_named),
    ]
    found: dict[int, Finding] = {}

    async def run(place: int, check: Callable[[], Awaitable[Finding]]) -> None:
        found[place] = await check()

    async with trio.open_nursery() as nursery:
        for place, check in enumerate(checks):
            nursery.start_soon(run, place, check)
    return [found[place] for place in sorted(found)]


async def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", "fail", f"Python {version} is too old", "install Python 3.11 or newer")
    return Finding("python", "ok", f"Python {version}")


async def _installation() -> Finding:
    try:
        check_installation()
    except MeshError as error:
        return Finding("installation", "fail", *_halves(error))
    return Finding("installation", "ok", "all packages come from one place")


async def _extras() -> Finding:
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        advice = "pip install 'infermesh[worker]'; a gateway or a bootstrap peer works without"
        return Finding("models", "warn", f"no models can run here, because {', '.join(missing)} is missing", advice)
    return Finding("models", "ok", "what runs models is installed")


async def _device(device: str) -> Finding:
    hardware = await discover(device)
    said = f"{hardware.device}: {hardware.device_name}, {hardware.memory_bytes / 2**30:.0f} GiB, {hardware.cpu_count} cores"
    if device.startswith("cuda") and hardware.device == "cpu":
        return Finding("device", "fail", f"no device {device} here", "look at nvidia-smi and the driver, or use --device cpu")
    return Finding("device", "ok", said)


async def _port(port: int, role: Role) -> Finding:
    name = f"port {port}"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            flag = "--listen" if role == "bootstrap" else "--port"
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            advice = f"well if that is your mesh-{role}; else give a new one another port with {flag}"
            return Finding(name, "warn", f"mesh-{role}'s port {what}", advice)
    return Finding(name, "ok", f"free for mesh-{role}")


async def _mdns() -> Finding:
    """Two peers of a mesh of their own look for each other."""
    mesh = f"doctor-{secrets.token_hex(4)}"
    heard = trio.Event()
    speaker, listener = (_announced(mesh) for _ in range(2))
    advice = "use --bootstrap; or allow UDP port 5353 and multicast on this network"
    try:
        with trio.move_on_after(MDNS_LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.run, lambda found: heard.set() if found.mesh == mesh else None)
                await nursery.start(speaker.run, lambda _: None)
                await heard.wait()
                nursery.cancel_scope.cancel()
    except* MeshError as group:
        return_value = Finding("mdns", "warn", str(_first(group)), advice)
    else:
        where = ", ".join(listener.interfaces) or "no interface"
        if heard.is_set():
            return_value = Finding("mdns", "ok", f"works on this machine ({where})")
        else:
            return_value = Finding("mdns", "warn", f"no answer within {MDNS_LIMIT:g} s ({where})", advice)
    return return_value


def _announced(mesh: str) -> Mdns:
    peer_id = Identity.generate().peer_id
    return Mdns(peer_id=peer_id, mesh=mesh, role="node", addresses=lambda: [f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id}"])


async def _invite(number: int, token: str) -> Finding:
    """What an invite says of itself. Whether it is good only a member can tell: the look into the mesh asks one."""
    name = f"invite {number}"
    try:
        check_bootstrap(token)
    except ValueError as error:
        return Finding(name, "fail", *_halves(error))
    invite = read(unseal(token))
    left = invite.expires - time.time()
    said = f"for the mesh {invite.mesh[:64]!r} by way of {', '.join(sorted({peer_of(one) for one in invite.addresses}))}"
    if left <= 0:
        advice = (
            "ask a member for a fresh one: `mesh invite`; the member's clock counts, so look at this one if it should be good"
        )
        return Finding(name, "fail", f"{said}; by this machine's clock it expired {_span(-left)} ago", advice)
    return Finding(name, "ok", f"{said}, good for {_span(left)} more by this machine's clock")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _addresses(bootstrap: Iterable[str]) -> list[str]:
    """What is dialled, each once: addresses, those of readable invites, and what is neither, so that it is said."""
    found: dict[str, None] = {}
    for text in bootstrap:
        found.update(dict.fromkeys(_addresses_of(text)))
    return list(found)


def _addresses_of(text: str) -> list[str]:
    if not is_invite(text):
        return [text]
    return read(unseal(text)).addresses if _is_good(text) else []


def _is_good(text: str) -> bool:
    try:
        check_bootstrap(text)
    except ValueError:
        return False
    return True


def _usable(settings: DoctorSettings) -> list[str]:
    return [text for text in settings.bootstrap if _is_good(text)]


async def _bootstrap(address: str) -> Finding:
    # What is no address may be a piece of an invite.
    name = f"bootstrap {address[-12:] if address.startswith('/') or len(address) < 40 else f'of {len(address)} characters'}"
    advice = "is it running, is the address right, does a firewall stand between?"
    try:
        check_bootstrap(address)
    except ValueError as error:
        return Finding(name, "fail", str(error), "copy the address from the peer's ready line")
    try:
        with trio.fail_after(DIAL_LIMIT):
            await _dial(address)
    except (MeshError, trio.TooSlowError) as error:
        said = error.message if isinstance(error, MeshError) else f"{address} did not answer within {DIAL_LIMIT:g} s"
        return Finding(name, "fail", said, advice)
    return Finding(name, "ok", f"{address} answers")


async def _dial(address: str) -> None:
    async def refuse(channel: Channel) -> None:
        channel.abort()

    # Late: it takes longer to import than all else that `mesh` does for its other verbs.
    from mesh.transport.libp2p import Libp2pTransport

    transport = Libp2pTransport(Identity.generate(), [])
    failure: MeshError | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, refuse)
        try:
            (await transport.dial([address])).abort()
        except MeshError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _mesh(settings: DoctorSettings) -> Finding:
    """Join the mesh for a moment, as a client would, and tell who is there or why nobody is."""
    # Late, for the same reason as above.
    from mesh.client import MeshClient, Patience

    bootstrap = _usable(settings)
    mesh = settings.mesh or next((read(unseal(text)).mesh for text in bootstrap if is_invite(text)), "default")
    try:
        async with MeshClient(bootstrap=bootstrap, mesh=mesh, patience=Patience(find=JOIN_LIMIT)) as client:
            models = await client.models()
            nodes = client.nodes()
            table = await _table(client.peer)
            relayed = sum(link.via is not None for link in client.peer.links.values())
    except (Denied, Misconfigured) as error:
        return Finding(f"mesh {mesh}", "fail", *_halves(error))
    except MeshError as error:
        return Finding(f"mesh {mesh}", "fail", error.message, "each sentence says what to do")
    found = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} found, serving {', '.join(model.id for model in models)}"
    found += f"; {relayed} of the links go over a relay, because nobody here can dial that peer" if relayed else ""
    return Finding(f"mesh {mesh}", "ok", f"{found}; the DHT {table}")


async def _table(peer: Peer) -> str:
    """What became of the distributed hash table, once somebody is in it or `TABLE_LIMIT` has passed."""
    with trio.move_on_after(TABLE_LIMIT):
        while not any(  # noqa: ASYNC110 - has no event
            (entry.way, entry.target, entry.code) == (dht.WAY, dht.TARGET, "") for entry in peer.trail.entries
        ):
            await trio.sleep(0.1)
    return peer.trail.outcome(dht.WAY, dht.TARGET)


async def _model(name: str, path: Path) -> Finding:
    try:
        check_model_directory(path)
    except MeshError as error:
        return Finding(f"model {name}", "fail", *_halves(error))
    return Finding(f"model {name}", "ok", f"{path} can be loaded")


async def _gateway(url: str, named: bool) -> Finding:
    try:
        health = await Gateway(url).get("/health")
    except MeshError as error:
        return Finding("gateway", "fail" if named else "warn", *_halves(error))
    return Finding("gateway", "ok", f"{url} is {health.get('status', 'there')}, version {health.get('version', '?')}")


def _halves(error: MeshError | ValueError) -> tuple[str, str]:
    """What happened and what to do: our messages say both, with a semicolon between."""
    what, _, advice = str(error).partition("; ")
    return what, advice


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
