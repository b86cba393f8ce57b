"""Machines that are not there: network namespaces on one switch, made by a test and gone with it.

1. Nothing is made, or changed, in the namespace of the machine itself: the switch has one of its own.
2. Names carry the pid of the process that made them. `sweep` removes what a killed run has left, its programs included.
3. A host is a `Fleet`: what it starts are real programs inside its namespace. A test reaches their ports through `Host.http`, or
   opens any socket there with `Host.inside`.
4. A cut is silent, as in real networks: frames vanish, and no interface says that it is down.

    network = Network(logs)                             # the fixture `network` does this and skips where it is not permitted
    one, two = network.host(), network.host()           # two machines on one switch, IPv4 and IPv6
    gateway = await one.gateway("--no-mdns")            # a program in the first
    node = await two.mock("model-a", "--no-mdns", "--bootstrap", one.address_of(gateway))
    async with one.http() as http:                      # a client in the first machine
        await http.get(f"{gateway.url}/v1/models")
    two.cut(); two.mend()                               # nothing gets through; everything does again
    network.split([one], [two]); network.heal()         # two islands; one network again
    far = network.far(delay=0.04, loss=0.01)            # behind a router: 80 ms of round trip, one packet in a hundred is lost
    hidden = network.far(inbound=False)                 # only connections that it opens itself get through; network.open(hidden)
    network.end()
"""

from __future__ import annotations

import contextvars
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import trio

from tests.fleet import MODULES, Fleet, Program
from tests.network.line import Line, open_tun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER = Path("/run/netns")
PREFIX = "infermesh"
MAX_HOSTS = 64
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_OURS = re.compile(rf"{PREFIX}-(\d+)-")
_libc = ctypes.CDLL(None, use_errno=True)
_entered: contextvars.ContextVar[Host | None] = contextvars.ContextVar("_entered", default=None)


class NotPermitted(Exception):
    """This machine, or this user, cannot make network namespaces; the text says why."""


class Network:
    """A switch with hosts. `split`, `heal` and `end` are for all of them."""

    def __init__(self, logs: Path, *, multicast: bool = True) -> None:
        """`logs`: a folder for the programs' logs and state. `multicast`: whether the switch passes it on; without it mDNS hears
        nobody, as in many clouds and guest networks. Raises NotPermitted.
        """
        self.mesh = f"test-{secrets.token_hex(6)}"
        self.hosts: list[Host] = []
        self.multicast = multicast
        self._logs = logs
        self.name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"
        self._switch = f"{self.name}-switch"
        _check()
        sweep()
        try:
            self._make_switch()
        except BaseException:
            self.end()
            raise

    def host(self, name: str = "") -> Host:
        """A machine on the switch."""
        host = self._host(name, 77)
        port, number = host.port, host.number
        _ip(
            f"link add {port} netns {self._switch} type veth peer name eth0 netns {host.namespace}",
            f"-n {host.namespace} link set eth0 address {_mac(number)} up",
            f"-n {host.namespace} address add {host.ipv4}/24 dev eth0",
            f"-n {host.namespace} address add {host.ipv6}/64 dev eth0 nodad",
            f"-n {host.namespace} route add default via 10.77.0.1",
            f"-n {host.namespace} -6 route add default via fd77::1",
            f"-n {self._switch} link set {port} up",
        )
        self._plug(host, "near")
        if not self.multicast:
            self._introduce(host)
        return host

    def far(self, name: str = "", *, delay: float = 0.0, loss: float = 0.0, inbound: bool = True) -> Host:
        """A machine behind a router, on a line of its own: `delay` in seconds and `loss` as a share count for each direction.

        No multicast gets through. Without `inbound` nothing gets in but answers to what the host itself opened, until `open`.
        """
        host = self._host(name, 78)
        with within(Path(FOLDER, host.namespace)):
            near = open_tun("eth0")
        with within(Path(FOLDER, self._switch)):
            distant = open_tun(host.port)
        _ip(
            f"-n {host.namespace} link set eth0 up",
            f"-n {host.namespace} address add {host.ipv4}/32 dev eth0",
            f"-n {host.namespace} address add {host.ipv6}/128 dev eth0 nodad",
            f"-n {host.namespace} route add default dev eth0 src {host.ipv4}",
            f"-n {host.namespace} -6 route add default dev eth0 src {host.ipv6}",
            f"-n {self._switch} link set {host.port} up",
            f"-n {self._switch} route add {host.ipv4}/32 dev {host.port}",
            f"-n {self._switch} -6 route add {host.ipv6}/128 dev {host.port}",
        )
        host.line = Line(near, distant)
        host.line.change(delay=delay, loss=loss, inbound=inbound, passing=True)
        return host

    def open(self, host: Host) -> None:
        """Let others open connections to a far host that had no way in."""
        assert host.line is not None
        host.line.change(inbound=True)

    def split(self, *islands: Sequence[Host]) -> None:
        """Every list of hosts becomes a network of its own; hosts that are in none stay where they are. Hosts of `host` only."""
        for number, island in enumerate(islands[1:], 1):
            for host in island:
                self._plug(host, f"island{number}")

    def heal(self) -> None:
        """Undo `split`."""
        for host in self.hosts:
            if host.line is None:
                self._plug(host, "near")

    def end(self) -> list[int]:
        """Kill all programs and remove everything. The pids of children that outlived their program."""
        orphans: list[int] = []
        for host in self.hosts:
            orphans += host.end()
            if host.line is not None:
                host.line.close()
        for namespace in _namespaces(self.name):
            _remove(namespace)
        return orphans

    def _make_switch(self) -> None:
        inside = f"-n {self._switch}"
        commands = [f"netns add {self._switch}", f"{inside} link set lo up"]
        for bridge in ("near", "island1", "island2", "island3"):
            commands += [f"{inside} link add {bridge} type bridge mcast_snooping 0", f"{inside} link set {bridge} up"]
        addresses = (f"{inside} address add 10.77.0.1/24 dev near", f"{inside} address add fd77::1/64 dev near nodad")
        _ip(*commands, f"{inside} link set near address {_mac(1)}", *addresses)
        with within(Path(FOLDER, self._switch)):
            _write_as_thread("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")

    def _host(self, name: str, net: int) -> Host:
        number = len(self.hosts) + 2
        assert number < MAX_HOSTS
        host = Host(self, number, f"{self.name}-{name or number}", self._logs / (name or f"host-{number}"), net=net)
        _ip(f"netns add {host.namespace}", f"-n {host.namespace} link set lo up")
        self.hosts.append(host)
        return host

    def _plug(self, host: Host, bridge: str) -> None:
        flood = "on" if self.multicast else "off"
        _ip(f"-n {self._switch} link set {host.port} master {bridge}")
        _ip(f"-n {self._switch} link set dev {host.port} mcast_flood {flood}", program="bridge")

    def _cut(self, host: Host, *, passing: bool) -> None:
        if host.line is not None:
            host.line.change(passing=passing)
        else:
            _ip(f"-n {self._switch} link set dev {host.port} state {3 if passing else 0}", program="bridge")

    def _introduce(self, new: Host) -> None:
        """IPv6 finds its neighbours by multicast: where there is none, they are told."""
        near = [host for host in self.hosts if host.line is None and host is not new]
        table = "-6 neighbour replace {} lladdr {} nud permanent dev"
        commands = [f"-n {self._switch} {table.format(new.ipv6, _mac(new.number))} near"]
        commands += [f"-n {new.namespace} {table.format('fd77::1', _mac(1))} eth0"]
        for old in near:
            commands.append(f"-n {new.namespace} {table.format(old.ipv6, _mac(old.number))} eth0")
            commands.append(f"-n {old.namespace} {table.format(new.ipv6, _mac(new.number))} eth0")
        _ip(*commands)


class Host(Fleet):
    """One machine: `start`, `node`, `mock`, `gateway`, `spawn` and `ready` as in `Fleet`, inside its namespace.

    Programs listen on all its addresses, unless `listen` says otherwise. `line` is what a far host is connected by.
    """

    def __init__(self, network: Network, number: int, namespace: str, logs: Path, *, net: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        super().__init__(logs)
        self.mesh = network.mesh
        self.network = network
        self.number = number
        self.namespace = namespace
        self.port = f"port{number}"
        self.line: Line | None = None
        self.ipv4 = f"10.{net}.0.{number}"
        self.ipv6 = f"fd{net}::{number:x}"
        self.listen = ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"]

    def spawn(self, role: str, *args: str, env: dict[str, str] | None = None, command: list[str] | None = None) -> Program:
        """As `Fleet.spawn`. The pid is the program's own."""
        name = f"{role}-{len(self.programs)}"
        argv = command or [
            *(sys.executable, "-m", MODULES[role], "--mesh", self.mesh, "--state-dir", str(self.logs / name)),
            *(f"--listen={address}" for address in self.listen),
            *args,
        ]
        return super().spawn(role, env=env, command=["nsenter", f"--net={FOLDER / self.namespace}", *argv])

    def address_of(self, program: Program, version: int = 4) -> str:
        """Where other machines reach a program of this one: the multiaddr to pass as `--bootstrap`."""
        start = f"/ip4/{self.ipv4}/" if version == 4 else f"/ip6/{self.ipv6}/"
        return next(address for address in program.ready["addresses"] if address.startswith(start))

    def cut(self) -> None:
        """Let all that this host sends, and all that is sent to it, vanish."""
        self.network._cut(self, passing=False)

    def mend(self) -> None:
        """Undo `cut`."""
        self.network._cut(self, passing=True)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Every socket that trio opens in this block, in whatever task it starts, is one of this host."""
        trio.socket.set_custom_socket_factory(_SocketFactory())
        token = _entered.set(self)
        try:
            yield
        finally:
            _entered.reset(token)

    def http(self, **options: Any) -> httpx2.AsyncClient:
        """An HTTP client on this host; `options` as httpx2.AsyncClient takes them. Loopback addresses are the host's own."""
        return httpx2.AsyncClient(transport=_Inside(self), **{"timeout": 30, "trust_env": False, **options})


@contextmanager
def within(namespace: Path) -> Iterator[None]:
    """This thread is in a network namespace for as long as the block takes. It must not wait for other tasks."""
    with Path("/proc/thread-self/ns/net").open() as back, namespace.open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(back.fileno())


def sweep() -> None:
    """Remove what runs that are dead have left."""
    for namespace in _namespaces(f"{PREFIX}-"):
        match = _OURS.match(namespace)
        if match and not psutil.pid_exists(int(match[1])):
            _remove(namespace)


class _SocketFactory(trio.abc.SocketFactory):
    """Opens sockets on the host that the present task is in."""

    def socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM, proto: int = 0) -> trio.socket.SocketType:  # noqa: A002 - trio's name
        host = _entered.get()
        if host is None:
            return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))
        with within(FOLDER / host.namespace):
            return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))


class _Inside(httpx2.AsyncBaseTransport):
    """Sends requests from a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with self._host.inside():
            return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _check() -> None:
    missing = [name for name in ("ip", "bridge", "nsenter") if shutil.which(name) is None]
    if missing:
        raise NotPermitted(f"{', '.join(missing)} not installed (iproute2, util-linux)")
    if os.geteuid() != 0:
        raise NotPermitted("only root may make network namespaces")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise NotPermitted("/dev/net/tun cannot be opened")


def _ip(*commands: str, program: str = "ip") -> None:
    for command in commands:
        done = subprocess.run([program, *command.split()], capture_output=True, text=True, check=False)
        if done.returncode and "not permitted" in done.stderr:
            raise NotPermitted(f"`{program} {command}`: {done.stderr.strip()}")
        assert done.returncode == 0, f"`{program} {command}`: {done.stderr.strip()}"


def _mac(number: int) -> str:
    return f"02:00:00:00:77:{number:02x}"


def _namespaces(start: str) -> list[str]:
    with suppress(OSError):
        return sorted(path.name for path in FOLDER.iterdir() if path.name.startswith(start))
    return []


def _remove(namespace: str) -> None:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in map(int, done.stdout.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _NEW_NETWORK):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _write_as_thread(*settings: str) -> None:
    """Switch on settings of the namespace that this thread is in."""
    for setting in settings:
        Path("/proc/sys", setting).write_text("1\n")


__all__ = ["Host", "Network", "NotPermitted", "sweep", "within"]
