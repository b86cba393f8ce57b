import msgspec
import pytest

from mesh.errors import BadRequest, NotFound, Unavailable
from mesh.http import Request, Router
from node.multiplexer.control import ControlRoutes


@pytest.fixture
async def control(stage):
    async def make(**settings):
        scene = await stage(**settings)
        router = Router()
        ControlRoutes(lambda: scene.backends).mount(router)

        async def ask(method, path, body=None):
            response = await router.answer(Request(method, path, body=msgspec.json.encode(body) if body is not None else b""))
            return msgspec.json.decode(response.body) if "json" in response.content_type else response.body.decode()

        return scene, ask

    return make


async def test_an_operator_sees_and_moves_everything(autojump_clock, control) -> None:
    _, ask = await control()
    assert await ask("GET", "/control/status") == {
        "state": "idle",
        "active_model": None,
        "awake": [],
        "memory_budget": None,
        "switching": None,
        "mode": "auto",
        "pinned": None,
        "models": {
            model: {
                "state": "asleep",
                "in_flight": 0,
                "queue_depth": 0,
                "last_error": None,
                "retry_seconds": 0,
                "memory": 0,
                "note": None,
            }
            for model in ("a", "b")
        },
        "costs": [],
    }
    await ask("POST", "/control/wake", {"model": "a"})
    assert (await ask("GET", "/control/status"))["state"] == "active:a"
    await ask("POST", "/control/switch", {"model": "b"})
    status = await ask("GET", "/control/status")
    assert status["models"]["b"]["state"] == "ready"
    assert status["costs"] == [{"from": None, "to": "a", "seconds": 2}, {"from": "a", "to": "b", "seconds": 2.5}]
    await ask("POST", "/control/sleep", {"model": "b"})
    assert (await ask("POST", "/models/load", {"model": "a"})) == {"model": "a", "state": "ready", "seconds": 2}
    assert (await ask("POST", "/models/unload", {"model": "a"})) == {"model": "a", "state": "asleep", "seconds": 0.5}
    await ask("POST", "/control/pin", {"model": "b"})
    assert (await ask("GET", "/control/status"))["pinned"] == "b"
    await ask("POST", "/control/unpin")
    await ask("POST", "/control/mode", {"mode": "manual"})
    assert (await ask("GET", "/control/status"))["mode"] == "manual"
    assert 'infermesh_switch_total{from="a",to="b",result="done"} 1' in await ask("GET", "/metrics")


async def test_what_cannot_be_done_is_said(autojump_clock, control) -> None:
    scene, ask = await control()
    with pytest.raises(NotFound, match="it has a, b"):
        await ask("POST", "/control/switch", {"model": "c"})
    with pytest.raises(BadRequest, match="mode"):
        await ask("POST", "/control/mode", {"mode": "chaos"})
    with pytest.raises(BadRequest):
        await ask("POST", "/control/switch", {})
    scene.models["a"].wake_error = "no room"
    with pytest.raises(Unavailable, match="no room"):
        await ask("POST", "/models/load", {"model": "a"})


async def test_a_node_without_a_multiplexer_says_how_to_get_one(autojump_clock) -> None:
    router = Router()
    ControlRoutes(dict).mount(router)
    with pytest.raises(NotFound, match="--switch-policy"):
        await router.answer(Request("GET", "/control/status"))
    assert (await router.answer(Request("GET", "/metrics"))).body == b""
