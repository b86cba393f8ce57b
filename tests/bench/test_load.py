import itertools

import pytest
import trio

from mesh.http import Request, Response, Router, serve
from tests.bench.load import Answer, Load, Run, poisson
from tests.bench.overload import figures, recovery


@pytest.fixture
async def url(nursery):
    async def refuse_every_third(_request: Request, numbers=itertools.count(1)) -> Response:  # noqa: B008 - one counter for all
        return Response.json({"text": "x" * 70_000}, 429 if next(numbers) % 3 == 0 else 200)

    router = Router()
    router.add("POST", "/v1/completions", refuse_every_third)
    port = await nursery.start(serve, router, "127.0.0.1", 0)
    return f"http://127.0.0.1:{port}"


async def test_requests_come_when_they_are_due_and_all_are_counted(url):
    load = Load(url, {"model": "m"})
    run = await load.arrive(itertools.repeat(0.01), 0.3)
    await load.close()
    assert len(run.answers) == 29
    assert {answer.status for answer in run.answers} == {200, 429}
    assert len(run.times(200)) + len(run.times(429)) == 29
    assert [round(answer.at, 2) for answer in sorted(run.answers, key=lambda answer: answer.at)][:3] == [0.01, 0.02, 0.03]
    assert run.seconds > 0.29
    assert run.cores > 0


async def test_clients_that_always_ask_wait_for_their_answers(url):
    load = Load(url, {"model": "m"})
    run = await load.keep(3, 0.2)
    await load.close()
    assert len(run.answers) > 3
    assert 0 not in {answer.status for answer in run.answers}


async def test_a_lost_connection_is_no_answer(nursery):
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.aclose()

    listeners = await nursery.start(trio.serve_tcp, hang_up, 0)
    load = Load(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", {})
    assert await load.ask() == 0


def test_independent_arrivals_have_the_rate_that_was_asked_for():
    gaps = list(itertools.islice(poisson(50.0, seed=1), 5000))
    assert 0.018 < sum(gaps) / len(gaps) < 0.022
    assert gaps == list(itertools.islice(poisson(50.0, seed=1), 5000))


def run_of(*answers: tuple[float, int, float], seconds: float) -> Run:
    return Run([Answer(*answer) for answer in answers], seconds, 0.1)


def test_the_last_late_or_refused_request_tells_the_recovery():
    after = run_of((0.1, 429, 0.001), (0.4, 200, 0.9), (0.8, 200, 0.25), (1.0, 200, 0.15), seconds=2.0)
    assert recovery(after, usual=0.2) == 0.4
    assert recovery(run_of((0.1, 200, 0.15), seconds=1.0), usual=0.2) == 0.0


def test_goodput_counts_what_was_answered_while_the_storm_lasted():
    calm = run_of(*((at / 10, 200, 0.1) for at in range(10)), seconds=1.0)
    storm = run_of(*((at / 10, (200, 429, 429)[at % 3], 0.01) for at in range(300)), seconds=30.0)
    told = {figure.name: figure.value for figure in figures(10 / 3, calm, storm, calm)}
    assert abs(told["overload: goodput lost against the peak"]) < 3.0
    assert told["overload: refused with 429"] == pytest.approx(100 * 2 / 3)
    assert told["overload: 429 after, p99"] == pytest.approx(10.0)
    assert told["overload: answers neither 200 nor 429"] == 0
