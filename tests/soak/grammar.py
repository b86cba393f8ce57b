"""Random JSON schemas, and a model that would never follow them by itself: the demo model, sampled at a high temperature.

What ends with `stop` must parse and fit its schema, what ends with `length` must be the beginning of something that does.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from mesh.errors import BackendFailed
from mesh.messages.inference import Delta, Done, Event, Fail, Grammar, InferenceRequest
from node.models import demo_model_path
from tests.figures import Figure
from tests.node.worker.output.schemas import faults, random_schema

if TYPE_CHECKING:
    from node.worker.engine import Engine
    from node.worker.output.grammar import Grammars

SCHEMAS = 1_000
LENGTHS = (20, 200)
"""Tokens that an answer may have: too few for most schemas, and enough for most."""
TEMPERATURE = 1.5
AT_ONCE = 64


@dataclass
class Findings:
    """How the answers ended, and what was wrong with them."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


async def measure(scale: float) -> list[Figure]:
    # Imported here: other parts must not carry torch along.
    from transformers import AutoTokenizer

    from node.worker.engine import Limits
    from node.worker.loader import Options, load
    from node.worker.output.grammar import Grammars

    path = demo_model_path()
    engine, ready = load(Options(path=path, device="cpu", slots=16, limits=Limits(queue=AT_ONCE)), lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(path)
    grammars = Grammars(tokenizer, vocabulary=ready.vocabulary, end_tokens=[tokenizer.eos_token_id])
    count = max(50, round(SCHEMAS * scale))
    found = constrained(engine, tokenizer, grammars, count, seed=23)
    print(*found.faults, sep="\n")
    return [
        Figure(f"grammar, {count} random schemas: answers that neither fit nor begin one that does", len(found.faults), "", 0),
        Figure("grammar: answers that ended with stop", found.ends["stop"], "", floor=count / 20),
        Figure("grammar: answers that ended with length", found.ends["length"], "", floor=count / 20),
    ]


def constrained(engine: Engine, tokenizer: Any, grammars: Grammars, count: int, *, seed: int) -> Findings:
    """Let the engine answer in so many random schemas. `grammars` judge what was cut off, spelled in other tokens."""
    source = random.Random(seed)
    found, schemas, events = Findings(), {}, {}
    with Progress(transient=True, auto_refresh=False) as progress:
        bar = progress.add_task("schemas", total=count)
        for number in range(count):
            schemas[number], events[number] = random_schema(source), []
            engine.submit(number, _request(number, schemas[number], source.choice(LENGTHS)))
            while len(events) >= AT_ONCE or (number == count - 1 and events):
                for ended in _step(engine, events):
                    _judge(found, tokenizer, grammars, schemas.pop(ended), events.pop(ended))
                    progress.advance(bar)
                progress.refresh()
    return found


def _request(number: int, schema: dict[str, Any], length: int) -> InferenceRequest:
    return InferenceRequest(
        request_id=f"r{number}",
        model="m",
        messages=[{"role": "user", "content": f"Tell me about {number}."}],
        grammar=Grammar("json_schema", json.dumps(schema)),
        temperature=TEMPERATURE,
        seed=number,
        max_tokens=length,
    )


def _step(engine: Engine, events: dict[int, list[Event]]) -> list[int]:
    """One step; the requests that ended in it."""
    step = engine.step()
    assert step is not None
    for number, event in step.events:
        events[number].append(event)
    return [number for number, event in step.events if isinstance(event, Done | Fail)]


def _judge(found: Findings, tokenizer: Any, grammars: Grammars, schema: dict[str, Any], events: list[Event]) -> None:
    text = "".join(event.text for event in events if isinstance(event, Delta))
    last = events[-1]
    if not isinstance(last, Done):
        found.faults.append(f"{json.dumps(schema)} failed: {last}")
        return
    found.ends[last.finish_reason] += 1
    if last.finish_reason == "stop":
        wrong = _faults(schema, text)
    else:
        wrong = [] if continues(tokenizer, grammars, schema, text) else ["begins nothing that fits"]
    if wrong:
        found.faults.append(f"{json.dumps(schema)}: {text!r}: {'; '.join(wrong)}")


def _faults(schema: dict[str, Any], text: str) -> list[str]:
    try:
        return faults(schema, json.loads(text))
    except ValueError as error:
        return [str(error)]


def continues(tokenizer: Any, grammars: Grammars, schema: dict[str, Any], text: str) -> bool:
    """Whether the text, spelled in other tokens, is the beginning of something that fits."""
    from node.worker.output.formats import ModelFormat
    from node.worker.output.forms import grammar_of

    grammar = grammar_of(_request(0, schema, 1), ModelFormat())
    assert grammar is not None
    constraint = grammars.constraint(grammar, param="p")
    try:
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            constraint.take(token)
    except BackendFailed:
        return False
    return True
