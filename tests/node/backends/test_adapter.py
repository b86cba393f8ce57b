"""Adapters as models of their own, over their base's backend and a real worker process."""

import json

import pytest
import trio

from mesh.errors import BadRequest, Misconfigured
from mesh.messages.inference import Delta, Done, InferenceRequest
from node.backends.adapter import AdapterBackend, adapters_by_base, is_adapter
from node.backends.torch import TorchBackend, TorchSettings
from node.service import NodeService
from tests.node.worker.adapters import save_adapter
from tests.node.worker.architectures import save
from tests.node.worker.tiny import make_tokenizer


def directory(path, *, base=None):
    path.mkdir()
    name, content = ("config.json", {}) if base is None else ("adapter_config.json", {"base_model_name_or_path": base})
    (path / name).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("wanted", ["org/Big", "big", "/somewhere/else/folder-of-big", "named-nothing-like-it"])
def test_a_base_is_found_by_its_id_its_folder_or_because_it_is_alone(tmp_path, wanted) -> None:
    models = {"big": directory(tmp_path / "folder-of-big"), "tuned": directory(tmp_path / "tuned", base=wanted)}
    assert is_adapter(models["tuned"])
    assert not is_adapter(models["big"])
    assert adapters_by_base(models) == {"big": {"tuned": (tmp_path / "tuned").resolve()}}


def test_among_several_the_named_one_is_the_base(tmp_path) -> None:
    models = {
        "tuned": directory(tmp_path / "tuned", base="org/small"),
        "big": directory(tmp_path / "a"),
        "small": directory(tmp_path / "b"),
    }
    assert adapters_by_base(models) == {"big": {}, "small": {"tuned": (tmp_path / "tuned").resolve()}}


@pytest.mark.parametrize("bases", [[], ["big", "small"]])
def test_an_adapter_whose_base_is_not_served_is_refused(tmp_path, bases) -> None:
    models = {name: directory(tmp_path / name) for name in bases}
    models["tuned"] = directory(tmp_path / "tuned", base="org/other")
    with pytest.raises(Misconfigured, match=r"tuned is an adapter for org/other.*--model other=DIRECTORY"):
        adapters_by_base(models)


def request(model: str, **fields) -> InferenceRequest:
    return InferenceRequest(
        request_id=f"r-{model}",
        model=model,
        **{"task": "completion", "prompt": [5, 6, 7], "temperature": 0.0, "max_tokens": 8, **fields},
    )


async def test_both_models_answer_from_one_process(tmp_path, nursery) -> None:
    base = save(tmp_path / "base", "llama", make_tokenizer())
    save_adapter(tmp_path / "tuned", base)
    settings = TorchSettings(
        model="base", path=tmp_path / "base", device="cpu", dtype="float32", adapters={"tuned": tmp_path / "tuned"}
    )
    backend = TorchBackend(settings)
    tuned = AdapterBackend("tuned", backend)
    service = NodeService([backend, tuned])
    changes = []
    service.on_change(lambda: changes.append(tuned.entry.state))
    assert (tuned.entry.id, tuned.entry.state, tuned.entry.numerics) == ("tuned", "loading", "")
    with trio.fail_after(60):
        await nursery.start(backend.run)
        await nursery.start(tuned.run)
    assert changes[-1] == "ready"
    one, other = service.entries()
    assert (other.id, other.task, other.capabilities.tasks) == ("tuned", "chat", ["chat", "completion"])
    assert len({one.numerics, other.numerics, ""}) == len({one.weights_digest, other.weights_digest, ""}) == 3
    assert (tuned.status().state, tuned.status().pid, tuned.status().restarts) == ("ready", None, 0)
    answers = {}
    for model in ("base", "tuned"):
        events = []
        with trio.fail_after(30):
            await service.infer(request(model), events.append)
        assert isinstance(events[-1], Done)
        answers[model] = [token for event in events if isinstance(event, Delta) for token in event.token_ids]
    assert answers["base"] != answers["tuned"]
    with pytest.raises(BadRequest, match="tuned is an adapter and makes no embeddings"):
        await service.infer(request("tuned", task="embedding", inputs=["x"]), lambda _: None)
