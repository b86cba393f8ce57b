from __future__ import annotations

import pytest

from mesh.openai.errors import model_not_found

KNOWN = ["llama-3-8b", "llama-3-70b", "qwen3-4b"]


@pytest.mark.parametrize(
    ("model", "known", "words"),
    [
        ("lama-3-8b", KNOWN, "did you mean llama-3-8b"),
        ("xyz", KNOWN, "there are: llama-3-70b, llama-3-8b, qwen3-4b"),
        ("xyz", [f"name-{number:02}" for number in range(15)], "name-09 and 5 more"),
        ("xyz", [], "no model is served"),
    ],
)
def test_near_names_are_listed(model, known, words):
    error = model_not_found(model, known)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert words in error.message


def test_a_name_without_end_is_cut():
    assert len(model_not_found("x" * 100_000, KNOWN).message) < 300
