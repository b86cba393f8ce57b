"""`make soak`: long measurements on machines made of network namespaces; asserts the targets, writes figures into docs/.

    python -m tests.soak [--scale 0.1] [PART ...]

With a scale below 1 everything is shorter, and nothing is written. It needs root, but for `engine`, `grammar` and `restarts`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import trio

from tests.figures import Figure, report, write
from tests.network.namespaces import NotPermitted
from tests.soak import churn, deaths, grammar, joins, restarts, wan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ENGINE_REQUESTS = 20_000


async def engine(scale: float) -> list[Figure]:
    """What `tests.soak.engine` says, which needs a process of its own: it is about that process's memory."""
    requests = max(500, round(ENGINE_REQUESTS * scale))
    command = [sys.executable, "-m", "tests.soak.engine", "--requests", str(requests)]
    done = await trio.run_process(command, capture_stdout=True, check=False)
    text = done.stdout.decode()
    found = json.loads(text[text.index("{") :])
    print(*found["faults"], sep="\n")
    return [
        Figure(f"engine, {requests} requests of every kind: faults", len(found["faults"]), "", 0),
        Figure("engine: resident memory at the end / after warm-up", found["growth"], "x", 1.1),
        Figure("engine: requests preempted", found["preemptions"], ""),
        Figure("engine: steps broken on purpose", found["broken_steps"], ""),
    ]


PARTS: dict[str, Callable[[float], Awaitable[list[Figure]]]] = {
    "joins": joins.measure,
    "deaths": deaths.measure,
    "wan": wan.measure,
    "churn": churn.measure,
    "engine": engine,
    "grammar": grammar.measure,
    "restarts": restarts.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--scale", type=float, default=1.0, help="of durations and counts; 0.1 for a first look")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    return max(run(part, options.scale) for part in options.parts or PARTS)


def run(part: str, scale: float) -> int:
    """Measure one part. Its exit code."""
    try:
        figures = trio.run(PARTS[part], scale)
    except NotPermitted as error:
        print(f"{part}: no network namespaces here: {error}", file=sys.stderr)
        return 2
    if scale >= 1:
        write(figures, mark=f"soak {part}", file=f"soak-{part}.json")
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
