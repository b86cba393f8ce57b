import pytest
import trio

from gateway.models import KnownModels
from mesh.errors import Conflict, NotFound
from mesh.identity import Identity
from mesh.messages.record import ModelEntry, NodeRecord
from mesh.record import seal
from mesh.registry import Registry, RegistryEvent


@pytest.fixture
def registry():
    return Registry(Identity.generate().peer_id, mesh="test")


def learn(registry: Registry, *entries: ModelEntry):
    identity = Identity.generate()
    record = NodeRecord(
        peer_id=identity.peer_id,
        sequence=1,
        issued_at=0,
        ttl=120,
        role="node",
        name="n",
        mesh="test",
        version="0",
        addresses=[],
        models=list(entries),
    )
    return registry.learn(seal(identity, record))


async def test_it_tells_what_nobody_announces(registry):
    learn(registry, ModelEntry(id="m"))
    models, missing = KnownModels(registry), []
    models.missing = missing.append
    assert models.resolve("m") == "m"
    with pytest.raises(NotFound):
        models.resolve("n")
    assert missing == ["n"]


async def test_a_name_is_remembered_for_a_day_after_its_node_was_last_seen(autojump_clock, registry):
    view = learn(registry, ModelEntry(id="m", aliases=["short"]))
    models = KnownModels(registry)
    await trio.sleep(1000)
    registry.expire()
    assert not registry.peers
    assert (models.resolve("m"), models.resolve("short")) == ("m", "m")
    await trio.sleep(23 * 3600)
    models._listen(RegistryEvent("left", view))
    await trio.sleep(23 * 3600)
    assert models.resolve("m") == "m"
    await trio.sleep(2 * 3600)
    with pytest.raises(NotFound):
        models.resolve("m")


async def test_an_id_beats_an_alias_and_two_targets_are_a_conflict(registry):
    models = KnownModels(registry)
    learn(registry, ModelEntry(id="one", aliases=["big"]))
    assert models.resolve("big") == "one"
    learn(registry, ModelEntry(id="two", aliases=["big"]))
    with pytest.raises(Conflict, match="one and two"):
        models.resolve("big")
    learn(registry, ModelEntry(id="big"))
    assert models.resolve("big") == "big"


async def test_an_unknown_name_gets_near_ones(registry):
    learn(registry, ModelEntry(id="llama-3-8b"))
    with pytest.raises(NotFound, match="llama-3-8b") as caught:
        KnownModels(registry).resolve("llama3-8b")
    assert caught.value.code == "model_not_found"


async def test_names_are_bounded(registry):
    models = KnownModels(registry, limit=10)
    for number in range(50):
        models._listen(RegistryEvent("joined", learn(registry, ModelEntry(id=f"m{number}"))))
    for peer_id in list(registry.peers):
        registry.forget(peer_id, "it leaves")
    assert models.resolve("m49") == "m49"
    with pytest.raises(NotFound):
        models.resolve("m0")
