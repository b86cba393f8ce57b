"""A line between two TUN devices, in a process of its own: delay, loss, silence, and a guard against connections from outside.

1. Packets leave in the order in which they came, `delay` seconds later. At most `MAX_PACKETS` wait per direction; more are lost.
2. With `inbound` off, a packet gets in only if it answers one that went out within `REMEMBERED` seconds.
3. The process ends with its standard input, so with whoever started it. Each line there is a JSON object of changes to `Rules`.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

MAX_PACKETS = 4096
MAX_FLOWS = 4096
REMEMBERED = 60.0
_PACKET = 65_536
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

Flow = tuple[int, bytes, bytes, bytes]
"""Protocol, inner address, outer address, and both ports, the inner one first."""


def open_tun(name: str) -> int:
    """A TUN device in the namespace that this thread is in; the file descriptor gives and takes whole IP packets."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


class Line:
    """The process, as a test sees it. Takes over both devices."""

    def __init__(self, near: int, distant: int) -> None:
        argv = [sys.executable, "-m", "tests.network.line", str(near), str(distant)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=(near, distant), text=True)
        os.close(near)
        os.close(distant)

    def change(self, **settings: float | bool) -> None:
        """Change fields of the `Rules`: `delay`, `loss`, `inbound`, `passing`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End it. May be called twice."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._process.stdin.close()


@dataclass
class Rules:
    """What happens to packets."""

    delay: float = 0.0
    loss: float = 0.0
    inbound: bool = True
    passing: bool = True
    flows: OrderedDict[Flow, float] = field(default_factory=OrderedDict)

    def takes(self, packet: bytes, now: float, *, outward: bool) -> bool:
        """Whether a packet goes on, and is not lost."""
        flow = flow_of(packet, outward=outward)
        if flow is None or not self.passing:
            return False
        if outward:
            self._remember(flow, now)
        elif not self.inbound and now - self.flows.get(flow, -REMEMBERED) >= REMEMBERED:
            return False
        return random.random() >= self.loss

    def _remember(self, flow: Flow, now: float) -> None:
        self.flows[flow] = now
        self.flows.move_to_end(flow)
        if len(self.flows) > MAX_FLOWS:
            self.flows.popitem(last=False)


def flow_of(packet: bytes, *, outward: bool) -> Flow | None:
    """Which conversation a packet belongs to, the same in both directions. None for multicast and what is no IP packet."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        protocol, start, size, places = packet[9], (packet[0] & 15) * 4, 4, (12, 16)
    elif version == 6 and len(packet) >= 40:
        protocol, start, size, places = packet[6], 40, 16, (8, 24)
    else:
        return None
    source, target = (packet[place : place + size] for place in places)
    if target[0] == 0xFF or (version == 4 and target[0] >= 224):
        return None
    ports = packet[start : start + 4] if protocol in (6, 17) else b""
    if outward:
        return protocol, source, target, ports
    return protocol, target, source, ports[2:4] + ports[0:2]


class Carrying:
    """The loop of the process."""

    def __init__(self, near: int, distant: int) -> None:
        self.rules = Rules()
        self._near = near
        self._distant = distant
        # Unbuffered: what a buffer holds, `select` does not see.
        self._input = os.fdopen(0, "rb", buffering=0)
        self._waiting: dict[int, deque[tuple[float, bytes]]] = {near: deque(), distant: deque()}

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            readable, _, _ = select.select([self._near, self._distant, self._input], [], [], self._pause())
            if self._input in readable and not self._listen():
                return
            for device in (self._near, self._distant):
                if device in readable:
                    self._read(device)
            self._deliver()

    def _listen(self) -> bool:
        text = self._input.readline()
        changes: dict[str, Any] = json.loads(text) if text else {}
        for name, value in changes.items():
            setattr(self.rules, name, value)
        return bool(text)

    def _read(self, device: int) -> None:
        now = time.monotonic()
        outward = device == self._near
        waiting = self._waiting[self._distant if outward else self._near]
        for _ in range(64):
            try:
                packet = os.read(device, _PACKET)
            except BlockingIOError:
                return
            if self.rules.takes(packet, now, outward=outward) and len(waiting) < MAX_PACKETS:
                waiting.append((now + self.rules.delay, packet))

    def _pause(self) -> float | None:
        due = [waiting[0][0] for waiting in self._waiting.values() if waiting]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _deliver(self) -> None:
        now = time.monotonic()
        for device, waiting in self._waiting.items():
            while waiting and waiting[0][0] <= now:
                try:
                    os.write(device, waiting.popleft()[1])
                except OSError:
                    continue  # the device is full or not up: the packet is lost, as on any line


if __name__ == "__main__":
    Carrying(int(sys.argv[1]), int(sys.argv[2])).run()
