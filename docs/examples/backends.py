"""Registers two backends, lets one be chosen for a task, asks it, and prints how both do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from node.backends import BackendCapabilities, get_backend_status_report, register_backend, select_backend_for_task

if TYPE_CHECKING:
    from mesh.messages.inference import Event
    from mesh.service import Emit


class Shout:
    """Anything with `infer` and, if it likes, `check` is a backend."""

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        words = [word.upper() for word in str(request.prompt).split()]
        emit(Accepted(running=1, waiting=0))
        for position, word in enumerate(words):
            emit(Delta(position, [], word + " "))
        emit(Done("stop", Usage(len(words), len(words)), Performance(0, 0, 0, 0, 1)))

    async def check(self) -> bool:
        return True


def show(event: Event) -> None:
    if isinstance(event, Delta):
        print(event.text, end="")


async def main() -> None:
    register_backend("shout", "API", "Shouting", Shout(), BackendCapabilities(supported_tasks=["completion"]), models=["loud"])
    register_backend("tool", "CLI", "A tool", Shout(), BackendCapabilities(supported_tasks=["completion"]), "/usr/bin/tool")

    chosen = select_backend_for_task("text-generation", "loud", preferred_types=["API", "CLI"])
    request = InferenceRequest(request_id="1", model="loud", task="completion", prompt="who are you")
    if chosen is not None:
        await chosen.infer(request, show)

    print()
    print(json.dumps(get_backend_status_report(), indent=2))


if __name__ == "__main__":
    trio.run(main)
