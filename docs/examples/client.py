"""Ask the mesh from Python, without a gateway: client.py [--bootstrap ADDR|INVITE]... [--mesh NAME] [QUESTION]."""

import argparse

import trio

from mesh.client import MeshClient
from mesh.errors import MeshError


async def main(bootstrap: list[str], mesh: str, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    async with MeshClient(bootstrap=bootstrap, mdns=not bootstrap, mesh=mesh) as client:
        models = await client.models()
        print("models:", ", ".join(model.id for model in models))
        print("nodes:", ", ".join(node.name for node in client.nodes()))

        answer = await client.chat(models[0].id, messages, max_tokens=40)
        print("answer:", answer.text)
        print("tokens:", answer.usage.completion_tokens, "from", answer.node)

        print("stream:", end=" ")
        async with client.stream(models[0].id, messages, max_tokens=40) as stream:
            async for piece in stream:
                print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--bootstrap", action="append", default=[], help="the address in a peer's ready line, or an invite; without it, mDNS"
    )
    parser.add_argument("--mesh", default="default")
    parser.add_argument("question", nargs="?", default="Who are you?")
    arguments = parser.parse_args()
    try:
        trio.run(main, arguments.bootstrap, arguments.mesh, arguments.question)
    except MeshError as error:
        raise SystemExit(f"client: {error.message}") from None
