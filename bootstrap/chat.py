"""`mesh chat`: a conversation in the terminal, or one answer for a prompt.

1. Ctrl-C stops the answer and keeps what came of it in the conversation; at the prompt it clears the line. Ctrl-D leaves.
2. A question whose answer failed is taken back: the conversation holds whole turns only.
3. An answer is text from a stranger: on a terminal its control characters are escaped.
"""

from __future__ import annotations

import re
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from mesh.errors import MeshError, NotFound
from mesh.logs import printable

if TYPE_CHECKING:
    from bootstrap.remote import Gateway

STOPPED = 130
"""The exit code of a one-shot answer that Ctrl-C stopped, as shells have it."""


class Conversation:
    """The turns so far, and the model that answers."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self.model = model
        self.messages: list[dict[str, Any]] = []
        self._gateway = gateway

    async def ask(self, prompt: str) -> bool:
        """Stream the answer to stdout. False when Ctrl-C stopped it. Raises MeshError, and then the turn did not happen."""
        self.messages.append({"role": "user", "content": prompt})
        pieces: list[str] = []
        try:
            whole = await self._stream(pieces)
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return whole

    async def _stream(self, pieces: list[str]) -> bool:
        def show(text: str) -> None:
            pieces.append(text)
            _write(text)

        whole = False
        with trio.open_signal_receiver(signal.SIGINT) as interrupts:
            async with trio.open_nursery() as nursery:

                async def obey_interrupt() -> None:
                    async for _ in interrupts:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(obey_interrupt)
                try:
                    await self._gateway.chat(self.model, self.messages, show)
                    whole = True
                finally:
                    if pieces:
                        _write("\n")
                nursery.cancel_scope.cancel()
        return whole


def chat(gateway: Gateway, model: str | None, prompt: str | None) -> int:
    """Answer `prompt`, or what is piped in, or talk until Ctrl-D. Returns the exit code. Raises MeshError."""
    chosen, others = trio.run(_choose, gateway, model)
    conversation = Conversation(gateway, chosen)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is not None:
        return 0 if _answer(conversation, prompt) else STOPPED
    also = f" (also served: {', '.join(others)}; choose with --model)" if others and model is None else ""
    print(printable(f"{chosen}{also}. Ctrl-C stops an answer, Ctrl-D leaves."))
    _talk(conversation)
    return 0


def _talk(conversation: Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - its import gives input() line editing and history
    while True:
        try:
            prompt = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
            continue
        if prompt:
            try:
                _answer(conversation, prompt)
            except MeshError as error:
                print(f"mesh: {printable(error.message)}", file=sys.stderr)


def _answer(conversation: Conversation, prompt: str) -> bool:
    try:
        return trio.run(conversation.ask, prompt)
    except BaseExceptionGroup as group:
        raise _only(group) from group


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first


async def _choose(gateway: Gateway, model: str | None) -> tuple[str, list[str]]:
    """The model to talk to, and the others. A given name is the gateway's to judge: it may be an alias."""
    if model is not None:
        return model, []
    served = [str(entry.get("id")) for entry in await gateway.models() if entry.get("task", "chat") == "chat"]
    if not served:
        raise NotFound("no model is served; start a node with `mesh-node`, or everything at once with `mesh up`")
    return served[0], served[1:]


def _write(text: str) -> None:
    if sys.stdout.isatty():
        text = "".join(part if part in ("\n", "\t") else printable(part) for part in re.split(r"([\n\t])", text))
    sys.stdout.write(text)
    sys.stdout.flush()
