"""The life of registered services on a clock of the test's own, with a double for the servers."""

import pytest
import trio
import trio.testing

from gateway.registry_view import foreign as module
from gateway.registry_view.foreign import MAX_SERVICES, ForeignServices
from gateway.registry_view.offers import MAX_OFFERED
from gateway.registry_view.requests import MAX_IN_FLIGHT
from gateway.registry_view.store import ServiceStore
from mesh.errors import BackendFailed, BadRequest, Busy, MeshError, NotFound, Unavailable
from mesh.messages.inference import Accepted, Delta, InferenceRequest

REQUEST = InferenceRequest(request_id="r", model="m", prompt="x", task="completion")


async def settled(foreign, name: str = "far", health: str = "healthy"):
    with trio.fail_after(30):
        while foreign.get(name).health != health:  # noqa: ASYNC110 - the sweep decides when
            await trio.sleep(0.05)
    return foreign.get(name)


async def ask(foreign) -> list:
    events: list = []
    await foreign.infer(REQUEST, events.append)
    return events


async def test_a_service_is_probed_at_once_and_its_models_are_offered(autojump_clock, foreign, registration):
    changed = foreign.changed
    service = await foreign.register(registration())
    assert service.health == "unknown"
    assert changed.is_set()
    await settled(foreign)
    (entry,) = foreign.entries()
    assert (entry.id, entry.state, entry.backend) == ("m", "ready", "openai-api")
    assert foreign.load()["m"].slots > 0


async def test_silence_makes_unhealthy_after_120_s_and_forgets_after_300_s(autojump_clock, foreign, registration):
    await foreign.register(registration())
    await settled(foreign)
    await trio.sleep(115)
    assert foreign.get("far").is_healthy
    await trio.sleep(10)
    assert foreign.get("far").health == "unhealthy"
    assert [entry.state for entry in foreign.entries()] == ["failed"]
    with pytest.raises(Unavailable) as caught:
        await ask(foreign)
    assert caught.value.retry_after
    await foreign.beat("far", None)
    assert (await settled(foreign)).is_healthy
    await trio.sleep(295)
    assert "far" in foreign.services
    await trio.sleep(10)
    assert foreign.services == {}
    with pytest.raises(NotFound):
        await foreign.beat("far", None)
    with pytest.raises(NotFound):
        await ask(foreign)


async def test_heartbeats_keep_it_and_its_own_word_counts(autojump_clock, foreign, registration):
    await foreign.register(registration())
    await settled(foreign)
    for _ in range(20):
        await trio.sleep(30)
        await foreign.beat("far", "running")
    assert foreign.get("far").is_healthy
    await foreign.beat("far", "Stopped")
    assert not foreign.get("far").is_healthy
    assert foreign.get("far").registration.status == "Stopped"
    await foreign.beat("far", "running")
    assert foreign.get("far").is_healthy


async def test_a_service_that_does_not_answer_is_probed_again_sooner_then_rarely(autojump_clock, foreign, double, registration):
    base = "http://far:8000"
    double.models_of[base] = BackendFailed("the service cannot be reached", code="service_unreachable")
    await foreign.register(registration())
    service = await settled(foreign, health="unhealthy")
    assert "cannot be reached" in service.problem
    for _ in range(10):
        await foreign.beat("far", None)
        await trio.sleep(60)
    assert 10 < len(double.asked) < 20
    double.models_of[base] = ["m"]
    await trio.sleep(61)
    await foreign.beat("far", None)
    assert foreign.get("far").is_healthy


async def test_slow_services_never_make_others_stale(autojump_clock, foreign, double, registration):
    for number in range(100):
        name = f"slow{number}"
        double.slow.add(f"http://{name}:8000")
        await foreign.register(registration(name))
    await foreign.register(registration("good"))
    started = trio.current_time()
    await settled(foreign, "good")
    assert trio.current_time() - started < 60
    await trio.sleep(30)
    assert {service.health for service in foreign.services.values()} == {"healthy", "unhealthy"}


async def test_a_probe_is_bounded_and_runs_once_however_many_ask(autojump_clock, foreign, double, registration):
    double.slow.add("http://far:8000")
    service = await foreign.register(registration())
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(foreign.probe, service)
    assert trio.current_time() - started <= 6
    assert len(double.asked) == 1
    assert service.health == "unhealthy"


async def test_a_probe_that_is_given_up_does_not_stop_the_others(autojump_clock, foreign, double, registration):
    double.slow.add("http://far:8000")
    async with trio.open_nursery() as asker:
        service = await foreign.register(registration())
        asker.start_soon(foreign.probe, service)
        await trio.sleep(1)
        asker.cancel_scope.cancel()
    double.slow.clear()
    assert (await settled(foreign)).is_healthy


async def test_the_supervisors_word_is_asked_every_minute(autojump_clock, foreign, double, registration):
    await foreign.register(registration(metadata={"type": "openai-api", "parent_service": "X"}))
    await settled(foreign)
    page = "http://far:8001/health"
    assert double.asked.count(page) == 1
    double.healthy_at[page] = False
    await trio.sleep(62)
    assert not foreign.get("far").is_healthy
    double.healthy_at[page] = True
    await trio.sleep(5)
    assert foreign.get("far").is_healthy


async def test_a_supervisor_is_shown_and_never_asked_for_models(autojump_clock, foreign, double, registration):
    await foreign.register(registration(metadata={"type": "vllm", "babysitter": "enhanced"}))
    await settled(foreign)
    assert double.asked == ["http://far:8000/health"]
    assert foreign.entries() == []
    with pytest.raises(NotFound):
        await ask(foreign)


async def test_the_number_of_services_is_bounded(autojump_clock, double, registration):
    foreign = ForeignServices(client=double)
    for number in range(MAX_SERVICES):
        await foreign.register(registration(f"s{number}"))
    with pytest.raises(Busy):
        await foreign.register(registration("one-more"))
    await foreign.register(registration("s7", port=9))
    await foreign.remove("s8")
    await foreign.register(registration("one-more"))


async def test_models_of_one_service_are_bounded(autojump_clock, foreign, double, registration):
    double.models_of["http://far:8000"] = [f"m{number}" for number in range(1000)]
    await foreign.register(registration())
    await settled(foreign)
    assert len(foreign.entries()) == module.MAX_MODELS


async def test_models_of_all_services_together_are_bounded_and_the_healthy_ones_come_first(
    autojump_clock, foreign, double, registration
):
    for number in range(20):
        double.models_of[f"http://s{number}:8000"] = [f"m-{number}-{index}" for index in range(60)]
        await foreign.register(registration(f"s{number}"))
    for number in range(20):
        await settled(foreign, f"s{number}")
    await foreign.beat("s0", "stopped")
    offered = foreign.entries()
    assert len(offered) == len(foreign.load()) == MAX_OFFERED
    assert {entry.state for entry in offered} == {"ready"}


# Requests


async def test_requests_are_shared_among_the_services_of_a_model(autojump_clock, foreign, registration):
    for name in ("a", "b"):
        await foreign.register(registration(name))
        await settled(foreign, name)
    texts = [(await ask(foreign))[1].text for _ in range(4)]
    assert sorted(texts) == ["http://a:8000"] * 2 + ["http://b:8000"] * 2
    assert [service.request_count for service in foreign.services.values()] == [2, 2]


async def test_a_failure_before_the_first_text_goes_to_the_next_service(autojump_clock, foreign, double, registration):
    for name in ("a", "b"):
        await foreign.register(registration(name))
        await settled(foreign, name)
    double.scripts["http://a:8000"] = [Accepted(), BackendFailed("cannot be reached", code="service_unreachable")]
    double.models_of["http://a:8000"] = BackendFailed("cannot be reached")
    events = await ask(foreign)
    assert [type(event).__name__ for event in events] == ["Accepted", "Delta", "Done"]
    assert events[1].text == "http://b:8000"
    assert foreign.get("a").error_count == 1
    await settled(foreign, "a", "unhealthy")


@pytest.mark.parametrize(
    "script", [[BadRequest("too long")], [Accepted(), Delta(0, [], "x"), BackendFailed("lost", code="service_lost")]]
)
async def test_what_another_service_cannot_mend_is_raised(autojump_clock, foreign, double, registration, script):
    for name in ("a", "b"):
        await foreign.register(registration(name))
        await settled(foreign, name)
        double.scripts[f"http://{name}:8000"] = script
    double.asked.clear()
    with pytest.raises(MeshError):
        await ask(foreign)
    assert len(double.asked) == 1


async def test_a_server_that_knows_no_top_k_is_asked_without_it_from_then_on(autojump_clock, foreign, double, registration, done):
    base = "http://far:8000"
    await foreign.register(registration())
    await settled(foreign)
    double.scripts[base] = [BadRequest("Unrecognized request argument supplied: top_k"), Accepted(), Delta(0, [], "x"), done]
    double.asked.clear()
    await ask(foreign)
    await ask(foreign)
    assert double.asked == [base, f"{base} plain", f"{base} plain"]


async def test_requests_on_one_service_are_bounded(autojump_clock, foreign, double, registration):
    await foreign.register(registration())
    await settled(foreign)
    gate = trio.Event()
    double.scripts["http://far:8000"] = [Accepted(), gate]
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_IN_FLIGHT):
            nursery.start_soon(ask, foreign)
        await trio.testing.wait_all_tasks_blocked()
        assert foreign.load()["m"].running == MAX_IN_FLIGHT
        with pytest.raises(Busy):
            await ask(foreign)
        nursery.cancel_scope.cancel()
    assert foreign.load()["m"].running == 0
    with trio.fail_after(1):
        await foreign.idle()


async def test_a_removed_service_finishes_what_runs_within_the_grace_time(autojump_clock, foreign, double, registration, done):
    gates = [trio.Event(), trio.Event()]
    double.scripts["http://far:8000"] = [Accepted(), Delta(0, [], "x"), gates[0], done]
    await foreign.register(registration())
    await settled(foreign)
    events: list = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(foreign.infer, REQUEST, events.append)
        await trio.testing.wait_all_tasks_blocked()
        await foreign.remove("far")
        assert foreign.services == {}
        with pytest.raises(NotFound):
            await ask(foreign)
        await trio.sleep(50)
        gates[0].set()
    assert events[-1] == done
    double.scripts["http://far:8000"] = [Accepted(), Delta(0, [], "x"), gates[1], done]
    await foreign.register(registration())
    await settled(foreign)
    started = trio.current_time()

    async def cut() -> None:
        with pytest.raises(Unavailable) as caught:
            await ask(foreign)
        assert caught.value.code == "service_removed"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        await trio.testing.wait_all_tasks_blocked()
        await foreign.register(registration(port=9))
    assert 59 < trio.current_time() - started < 62


# Storage: on the real clock, for a clock that jumps does not wait for threads


async def test_registrations_survive_a_restart(double, registration, nursery, tmp_path):
    store = ServiceStore(tmp_path / "s.sqlite3")
    first = ForeignServices(store, client=double)
    async with trio.open_nursery() as life:
        await life.start(first.run)
        for name in ("a", "b", "c"):
            await first.register(registration(name, metadata={"n": name}))
        await first.remove("b")
        await first.beat("c", "degraded")
        assert first.problem is None
        life.cancel_scope.cancel()
    again = ForeignServices(ServiceStore(tmp_path / "s.sqlite3"), client=double)
    await nursery.start(again.run)
    assert [(name, one.registration.status, one.registration.metadata) for name, one in again.services.items()] == [
        ("a", "running", {"n": "a"}),
        ("c", "degraded", {"n": "c"}),
    ]
    assert (await settled(again, "a")).is_healthy


async def test_the_times_of_heartbeats_are_stored_now_and_then(double, registration, nursery, tmp_path, monkeypatch, eventually):
    monkeypatch.setattr(module, "STORE_SECONDS", 0.05)
    store = ServiceStore(tmp_path / "s.sqlite3")
    foreign = ForeignServices(store, client=double)
    await nursery.start(foreign.run)
    await foreign.register(registration())
    (before,) = await store.load()
    service = await foreign.beat("far", None)
    assert service.last_heartbeat != before.last_heartbeat

    async def stored() -> bool:
        return (await store.load())[0].last_heartbeat == service.last_heartbeat

    await eventually(stored)


async def test_without_a_disk_services_work_and_say_so(double, registration, nursery, tmp_path):
    foreign = ForeignServices(ServiceStore(tmp_path / "missing" / "s"), client=double)
    await nursery.start(foreign.run)
    await foreign.register(registration())
    await settled(foreign)
    assert foreign.problem
    assert len(await ask(foreign)) == 3
