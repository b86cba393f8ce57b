"""`make chaos`: real processes, real sockets, a seeded schedule of faults; every answer compared with the undisturbed run.

    python -m tests.chaos [--faults N] [--seed S] [--shard K/N] [--folder F] [KIND ...]
    python -m tests.chaos --merge --folder F
    python -m tests.chaos survive [--requests N]

With a folder, results are kept there, a run that was cut off goes on, and `--merge` writes what all shards found into docs/.
`survive` with at least 2000 requests writes its figures there too.
Kinds that need network namespaces need root.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.chaos.faults import KINDS
from tests.chaos.run import run_shard
from tests.chaos.shards import Shard, figures, merged, publish
from tests.chaos.survive import REQUESTS, survive
from tests.chaos.survive import publish as publish_survival
from tests.figures import report
from tests.network.namespaces import NotPermitted

FAULTS = 10
SURVIVE = "survive"


def main() -> int:
    options = parsed()
    # In the background of a shell it is ignored; and whoever ends this must end its programs too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    if options.merge:
        return report(publish(merged(options.folder)))
    logs = Path(tempfile.mkdtemp(prefix="infermesh-chaos-"))
    try:
        code = run(options, logs)
    except BaseException:
        print(f"logs: {logs}", file=sys.stderr)
        raise
    if code == 0:
        shutil.rmtree(logs, ignore_errors=True)
    else:
        print(f"logs: {logs}", file=sys.stderr)
    return code


def run(options: argparse.Namespace, logs: Path) -> int:
    if options.kinds == [SURVIVE]:
        found = trio.run(survive, logs, options.seed, options.requests)
        if options.requests >= REQUESTS:
            publish_survival(found)
        return report(found)
    folder = options.folder or logs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    start, results, code = time.perf_counter(), [], 0
    part, parts = options.shard
    for name in options.kinds or KINDS:
        shard = Shard(folder, name, seed=options.seed, faults=options.faults, part=part, parts=parts)
        try:
            trio.run(run_shard, shard, logs)
        except NotPermitted as error:
            print(f"{name}: left out, no network namespaces here: {error}", file=sys.stderr)
        except RuntimeError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
        else:
            code |= bool(shard.left)
        results += shard.results
    print(f"{time.perf_counter() - start:.0f} s")
    return report(figures(results)) or code


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; or {SURVIVE}; all kinds when none is named"
    )
    parser.add_argument("--faults", type=int, default=FAULTS, help="of each kind, in all shards together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard", type=shard_of, default=(1, 1), metavar="K/N")
    parser.add_argument("--folder", type=Path, help="where results are kept")
    parser.add_argument("--merge", action="store_true", help="of all results in the folder, into docs/")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of survive")
    options = parser.parse_args()
    unknown = set(options.kinds) - {*KINDS} - ({SURVIVE} if len(options.kinds) == 1 else set())
    if unknown:
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; choose of {', '.join(KINDS)}, or {SURVIVE} alone")
    if options.merge and options.folder is None:
        parser.error("--merge needs --folder")
    return options


def shard_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
