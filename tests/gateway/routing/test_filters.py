"""Which tasks a model takes, as nodes name them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway.routing.filters import does, refuse_task
from mesh.errors import BadRequest
from mesh.messages.record import Capabilities, ModelEntry


def entry(*tasks: str, task: str = "chat") -> ModelEntry:
    return ModelEntry(id="m", task=task, capabilities=Capabilities(tasks=list(tasks)))


def view(entry: ModelEntry) -> SimpleNamespace:
    return SimpleNamespace(record=SimpleNamespace(models=[entry]))


@pytest.mark.parametrize(
    ("said", "text", "vectors"),
    [
        (entry(), True, False),
        (entry(task="embedding"), False, True),
        (entry("chat", "completion"), True, False),
        (entry("chat", "completion", "embedding"), True, True),
        (entry("embedding"), False, True),
        (entry("text-embedding", "rerank"), False, True),
        (entry("text-generation"), True, False),
    ],
    ids=lambda value: str(value.capabilities.tasks or value.task) if isinstance(value, ModelEntry) else None,
)
def test_a_task_goes_by_the_names_that_the_node_uses(said, text, vectors):
    assert (does(said, "chat"), does(said, "completion"), does(said, "embedding")) == (text, text, vectors)


def test_a_task_that_nobody_does_is_the_clients_error():
    with pytest.raises(BadRequest, match="m is for embedding, not for chat; send it to /v1/embeddings") as caught:
        refuse_task([view(entry("embedding"))], "m", "chat")
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "model")
    with pytest.raises(BadRequest, match="not for embedding; choose another model"):
        refuse_task([view(entry())], "m", "embedding")


def test_a_task_that_somebody_does_or_a_model_that_nobody_serves_is_not():
    refuse_task([view(entry("embedding")), view(entry())], "m", "chat")
    refuse_task([view(entry("embedding"))], "other", "chat")
