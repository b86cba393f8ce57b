"""The HTTP ports of all backends: each has its P and P+1.

1. With one backend the node is called by its name there; with several each is called NAME-ID.
2. What a backend's P answers is about that backend alone; all of them are behind the links of the mesh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from node.http import Identification, Ports
from node.service import NodeService

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import trio

    from mesh.http.keys import Keys
    from mesh.messages.record import ModelEntry
    from node.backends.build import Built


class Outlets:
    """All the ports; `first` is P of the first backend. `ports` is what the record says of them."""

    def __init__(self, built: Sequence[Built], service: NodeService, *, keys: Keys | None = None) -> None:
        """`service` is what a node's only backend answers by, which then drains with the node."""
        self.first = 0
        self.ports: dict[str, int] = {}
        self._built = list(built)
        services = [service] if len(built) == 1 else [NodeService(each.backends, usages=service.usages) for each in built]
        self._services = services
        self._all = [
            Ports(one, supervisor_only=each.answers_itself, keys=keys) for one, each in zip(services, built, strict=True)
        ]

    async def open(self, nursery: trio.Nursery, *, name: str, host: str) -> None:
        """Bind them all, to be served until the nursery is cancelled. Raises Misconfigured when one cannot be had."""
        for built, ports in zip(self._built, self._all, strict=True):
            unit = built.unit
            port: int = await nursery.start(ports.run, host, unit.port)
            shown = name if len(self._built) == 1 else f"{name}-{unit.id}"
            ports.routes.me = Identification(name=shown, host=host, port=port, service_type=unit.settings.kind)
            if not self.first:
                self.first = port
                self.ports |= {"service": port, "supervisor": port + 1}
            if len(self._built) > 1:
                self.ports |= {f"service-{unit.id}": port, f"supervisor-{unit.id}": port + 1}

    def marked(self, entries: Sequence[ModelEntry]) -> list[ModelEntry]:
        """The same, each with the backend that has it, where there are several."""
        if len(self._built) == 1:
            return list(entries)
        owners: dict[str, str] = {}
        for built in self._built:
            for entry in [entry for backend in built.backends for entry in backend.entries()]:
                owners.setdefault(entry.id, built.unit.id)
        return [msgspec.structs.replace(entry, unit=owners.get(entry.id, "")) for entry in entries]

    def tell_network(self, report: Callable[[], dict[str, Any]]) -> None:
        """What `/network` answers."""
        for ports in self._all:
            ports.routes.network = report

    def stop(self) -> None:
        """Take nothing new."""
        for service, ports in zip(self._services, self._all, strict=True):
            service.drain()
            ports.stop()

    async def stopped(self) -> None:
        """Wait until the last answer is out. No time limit of its own."""
        for ports in self._all:
            await ports.stopped.wait()
