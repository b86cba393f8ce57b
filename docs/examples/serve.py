"""Serve a model that is a Python function: python docs/examples/serve.py [--bootstrap ADDR]... [--mesh NAME]. Ctrl-C ends it."""

import argparse
import contextlib
from collections.abc import AsyncGenerator

import trio

from mesh.client import LibP2PInferenceNode, PeerCapability
from mesh.messages.inference import InferenceRequest


async def shout(request: InferenceRequest) -> AsyncGenerator[str, None]:
    """Say the last message again, in capitals, word by word."""
    for word in str((request.messages or [])[-1]["content"]).split():
        yield word.upper() + " "


async def main(bootstrap: list[str], mesh: str) -> None:
    node = LibP2PInferenceNode({"bootstrap_peers": bootstrap, "enable_mdns": not bootstrap, "mesh": mesh})
    node.register_capability(PeerCapability.CHAT)
    node.register_model("shout", shout)
    await node.start()
    print(node.addresses[0], flush=True)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await node.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", action="append", default=[], help="the address in a peer's ready line; without it, mDNS")
    parser.add_argument("--mesh", default="default")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, arguments.bootstrap, arguments.mesh)
