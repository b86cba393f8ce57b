from random import Random

from node.worker.demo.phrasing import vary


def variants(text, **options):
    return {vary(Random(seed), text, **options) for seed in range(400)}


def test_the_text_itself_and_its_plain_forms_come_up():
    found = variants("What is a node?")
    assert {
        "What is a node?",
        "what is a node",
        "what is a node?",
        "What is a node",
        "What's a node?",
    } <= found


def test_only_short_texts_are_shouted():
    assert "HELLO!" in variants("Hello!")
    assert not any(text.isupper() for text in variants("What is a node?"))


def test_openers_can_be_switched_off():
    assert any(text.startswith("Please tell me: what") for text in variants("What is a node?"))
    assert not any(text.startswith("Please") for text in variants("Hello!", openers=False))


def test_a_placeholder_survives_every_variation():
    assert all("{}" in text for text in variants("My name is {}.", openers=False))
