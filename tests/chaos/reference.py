"""A node that nothing happens to, which says what the right answers are. What was asked once is remembered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from mesh.openai.types import CHAT_DEFAULTS
from tests.chaos.traffic import PATIENCE, Answer, Body, Truth, ask

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx2

    from tests.chaos.flips import Position

DEMO = "infermesh-demo"
_AT_ONCE = 16


@dataclass(frozen=True)
class Verdict:
    """What is wrong with an answer; empty: nothing. `flipped`: it differs, but only within the margin in which it may."""

    fault: str = ""
    flipped: bool = False

    @property
    def wrong(self) -> bool:
        return bool(self.fault) and not self.flipped


class Reference:
    """Asked on its own port, so without a gateway."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url
        self._known: dict[str, Truth] = {}
        self._places = trio.CapacityLimiter(_AT_ONCE)

    async def truth(self, answer: Answer) -> Truth:
        """The undisturbed run of the same request with the same seed. Raises RuntimeError when there is none."""
        body = _body(answer)
        key = json.dumps(body, sort_keys=True)
        async with self._places:
            if key not in self._known:
                right = Answer(body)
                await ask(self._http, self._url, right)
                if right.ends != ["done"]:
                    raise RuntimeError(f"the undisturbed run failed: {right.ends}")
                self._known[key] = Truth(right.text, right.tokens, right.finish[0])
        return self._known[key]

    async def verdicts(self, answers: Iterable[Answer]) -> list[Verdict]:
        """One for each answer, in their order."""
        answers = list(answers)
        found = [Verdict()] * len(answers)

        async def judge(index: int, answer: Answer) -> None:
            found[index] = await self._verdict(answer)

        async with trio.open_nursery() as nursery:
            for index, answer in enumerate(answers):
                nursery.start_soon(judge, index, answer)
        return found

    async def _verdict(self, answer: Answer) -> Verdict:
        if answer.seed is None and answer.ends != ["done"]:
            # Without a head nobody knows its seed; it has failed anyway.
            return Verdict(f"ended with {answer.ends}")
        truth = await self.truth(answer)
        fault = answer.fault(truth)
        if not fault or answer.ends != ["done"] or answer.body["model"] != DEMO:
            return Verdict(fault)
        async with self._places:
            return Verdict(fault, flipped=await self._flipped(answer, truth))

    async def _flipped(self, answer: Answer, truth: Truth) -> bool:
        """Ask the engine about every position, and look whether the answer parts from the run in a flip."""
        # Only where something differs: torch takes seconds to load.
        from node.worker.sampling import Draw
        from tests.chaos.flips import TOLD, Vocabulary, flipped

        body = {**_body(answer), "logprobs": True, "top_logprobs": TOLD}
        vocabulary = Vocabulary.of_demo()
        run = await self._run(body)
        told = b"".join(position.token for position in run)
        if told.removesuffix(vocabulary.end).decode(errors="replace") != truth.text or len(answer.finish) != 1:
            return False
        draw = Draw(
            temperature=body["temperature"],
            top_k=body.get("top_k", CHAT_DEFAULTS.top_k),
            top_p=body.get("top_p", CHAT_DEFAULTS.top_p),
            seed=body.get("seed", 0),
        )
        return flipped(
            run,
            answer.text,
            ended=answer.finish[0] == "stop",
            draw=draw,
            vocabulary=vocabulary,
            least=body.get("min_tokens", 0),
            most=body["max_tokens"],
        )

    async def _run(self, body: Body) -> list[Position]:
        """Every token of the undisturbed run, and what else was likely there."""
        from tests.chaos.flips import Position

        reply = await self._http.post(f"{self._url}/v1/chat/completions", json=body, timeout=PATIENCE)
        reply.raise_for_status()
        told: list[dict[str, Any]] = reply.json()["choices"][0]["logprobs"]["content"]
        return [
            Position(bytes(one["bytes"]), tuple((bytes(other["bytes"]), other["logprob"]) for other in one["top_logprobs"]))
            for one in told
        ]


def _body(answer: Answer) -> Body:
    """The request in one piece, with the seed that was drawn for it."""
    body = {name: value for name, value in answer.body.items() if name != "stream_options"} | {"stream": False}
    if answer.seed is not None and (body["temperature"] or body["model"] != DEMO):
        # The mock's words depend on the seed even when nothing is sampled.
        body["seed"] = answer.seed
    return body
