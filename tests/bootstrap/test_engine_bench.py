"""`mesh bench engine`: what it counts, on a backend of the test's own; and once on a real worker."""

import json
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from bootstrap.command import main
from bootstrap.engine_bench import SHARED, Bench, BenchSettings
from mesh.errors import BackendFailed, Misconfigured
from mesh.messages.inference import Accepted, Delta
from node.models import demo_model_path


class Backend:
    """Answers at once, and remembers what it was asked."""

    def __init__(self, context: int = 4096, tokens: int | None = None) -> None:
        self.entry = SimpleNamespace(id="m", context_length=context)
        self.requests = []
        self._tokens = tokens

    async def infer(self, request, emit):
        self.requests.append(request)
        emit(Accepted(running=0, waiting=0))
        for offset in range(request.max_tokens if self._tokens is None else self._tokens):
            emit(Delta(offset=offset, token_ids=[5], text="x"))


def settings(**options):
    return BenchSettings(model=demo_model_path(), **options)


async def test_every_number_of_requests_is_measured_in_every_round():
    backend = Backend()
    result = await Bench(backend, settings(requests=(1, 3), rounds=2, prompt=10, tokens=4)).run()
    assert [row.requests for row in result.rows] == [1, 3]
    assert all(row.tokens_per_second > 0 and row.gap_p99_ms >= row.gap_p50_ms >= 0 for row in result.rows)
    measured = [request for request in backend.requests if len(request.prompt) == 10]
    assert len(measured) == 1 + 2 * (1 + 3)  # the first one warms up
    assert len({tuple(request.prompt) for request in measured}) == len(measured)
    assert all(request.ignore_eos and request.max_tokens == 4 for request in measured)


async def test_the_prefix_is_the_same_in_a_pair_and_in_no_other():
    backend = Backend()
    await Bench(backend, settings(requests=(1,), rounds=3, prompt=10)).run()
    shared = [tuple(request.prompt[:SHARED]) for request in backend.requests if len(request.prompt) > SHARED]
    assert len(shared) == 6
    assert shared[::2] == shared[1::2]
    assert len(set(shared)) == 3


async def test_a_short_context_has_no_prefix_to_know():
    assert (await Bench(Backend(256), settings(requests=(1,), rounds=1)).run()).known_prefix is None


async def test_what_cannot_be_measured_is_said():
    with pytest.raises(Misconfigured, match="take 128 tokens, the model takes 100"):
        await Bench(Backend(100), settings()).run()


def test_a_directory_without_a_model_is_refused(capsys, tmp_path):
    assert main(["bench", "engine", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_wrong_numbers_are_refused(capsys):
    assert main(["bench", "engine", "--requests", "0"]) == 2
    assert "is not a number from 1" in capsys.readouterr().err


def test_a_worker_that_ends_is_one_line(capsys, monkeypatch):
    async def broken(settings):
        raise ExceptionGroup("nursery", [ExceptionGroup("nursery", [BackendFailed("the worker died: killed")])])

    monkeypatch.setattr("bootstrap.engine_bench._measured", broken)
    assert main(["bench", "engine"]) == 1
    assert capsys.readouterr().err == "mesh: the worker died: killed\n"


@pytest.mark.system
def test_the_demo_model_in_a_worker_without_torch_in_this_process(tmp_path):
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    program = (
        "import sys; from bootstrap.command import main;"
        "code = main(['bench', 'engine', '--requests', '1', '2', '--rounds', '1', '--tokens', '4', '--threads', '1',"
        f" '--json', {str(figures)!r}, '--svg', {str(picture)!r}]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("requests\ttokens/s\t")
    told = json.loads(figures.read_text())
    assert [row["requests"] for row in told["rows"]] == [1, 2]
    assert (told["dtype"], told["device"], told["weights"], told["threads"]) == ("float32", "cpu", "", 1)
    title = "infermesh-demo: float32 on cpu with 1 thread"
    assert done.stderr.splitlines()[-1] == f"{title}; 64 tokens of prompt, 4 of answer"
    assert title in [text.text for text in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
