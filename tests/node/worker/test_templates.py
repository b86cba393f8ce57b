"""Which chat template a model gets that has none of its own."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest

from mesh.messages.inference import InferenceRequest
from node.worker import templates
from node.worker.chat import Prompts
from node.worker.loader import Options, load
from node.worker.templates import CHATML, LLAMA3, ChatTemplate, Templates, get_template, installed_templates

if TYPE_CHECKING:
    from pathlib import Path

MINE = ChatTemplate(text="{{ messages[0]['content'] }}|", end="<|end|>")
NOTHING = "no template"


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("Meta-Llama-3.1-8B-Instruct", LLAMA3),
        ("something-never-heard-of", LLAMA3),
        ("Qwen/Qwen2.5-0.5B-Instruct", CHATML),
        ("OpenHermes-2.5", CHATML),
        ("", LLAMA3),
    ],
)
def test_the_models_name_decides(model: str, template: ChatTemplate) -> None:
    assert get_template(model) is template


def test_the_longest_registered_name_wins_and_a_taken_one_stays() -> None:
    registered = Templates()
    registered.register("Qwen-Own", MINE)
    registered.register("qwen", MINE)
    assert registered.get_template("my qwen_own 7B") is MINE
    assert registered.get_template("qwen-7b") is CHATML


def test_installed_packages_add_templates(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    points = [
        EntryPoint("parrot", f"{__name__}:MINE", templates.GROUP),
        EntryPoint("broken", "no.such.module:X", templates.GROUP),
        EntryPoint("wrong", f"{__name__}:NOTHING", templates.GROUP),
    ]
    monkeypatch.setattr(templates, "entry_points", lambda *, group: [point for point in points if point.group == group])
    found = installed_templates()
    assert found.get_template("Parrot-1B") == MINE
    assert found.get_template("broken wrong") is LLAMA3
    assert "broken (no.such.module:X) cannot be loaded" in caplog.text
    assert "is no ChatTemplate" in caplog.text


@pytest.mark.parametrize(("name", "expected"), [("qwen-like", CHATML.text), ("plain", LLAMA3.text)])
def test_a_model_directory_without_a_template_gets_one(name: str, expected: str, models_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models_folder / "llama", tmp_path / name)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    engine, _ = load(Options(path=folder, device="cpu", dtype="float32"), lambda _: None)
    assert engine.intake._prompts.template == expected


@pytest.mark.parametrize("template", [LLAMA3, CHATML])
def test_ours_say_every_message_and_ask_for_an_answer(template: ChatTemplate, tokenizer: Any) -> None:
    tokenizer.chat_template, own = template.text, tokenizer.chat_template
    try:
        messages = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None},
        ]
        ids = Prompts(tokenizer, 512).ids(InferenceRequest(request_id="r", model="m", messages=messages))
        text = tokenizer.decode(ids)
    finally:
        tokenizer.chat_template = own
    assert text.count(template.end) == 3
    assert text.index("Be kind.") < text.index("Hi") < text.rindex("assistant")
