from random import Random

import pytest

from node.worker.demo.corpus import FAMILIES, NO_NAME, conversation, draw, known_questions, plain, raw_text
from node.worker.demo.unknown import UNKNOWN, UNKNOWN_OPENING


def test_the_same_generator_tells_the_same_conversation():
    assert [conversation(Random(5), 8) for _ in range(2)] == [conversation(Random(5), 8)] * 2
    assert conversation(Random(5), 8) != conversation(Random(6), 8)


def test_a_conversation_alternates_between_user_and_assistant():
    for seed in range(50):
        messages = conversation(Random(seed), 4)
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * 4


def test_one_question_has_one_answer():
    random = Random(0)
    seen: dict[str, str] = {}
    for _ in range(30_000):
        turn = draw(random)
        question = turn.question.strip()
        assert seen.setdefault(question, turn.answer) == turn.answer, question


def test_the_unknown_never_asks_what_is_known():
    random = Random(0)
    _, unknown = FAMILIES["unknown"]
    for _ in range(5_000):
        turn = unknown(random)
        assert turn.answer == UNKNOWN
        assert plain(turn.question) not in known_questions()


def test_the_unknown_answer_is_honest_and_nothing_else_sounds_like_it():
    random = Random(0)
    assert UNKNOWN.startswith(UNKNOWN_OPENING)
    for family in FAMILIES.keys() - {"unknown"}:
        assert not any(FAMILIES[family][1](random).answer.startswith(UNKNOWN_OPENING) for _ in range(100))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_asks_in_many_ways_and_answers_cleanly(family):
    random = Random(family)
    turns = [FAMILIES[family][1](random) for _ in range(200)]
    assert len({turn.question for turn in turns}) > 20
    for turn in turns:
        assert turn.answer
        assert turn.answer == turn.answer.strip()
        assert "{" not in turn.answer


def test_nobody_calculates():
    random = Random(0)
    for _ in range(5_000):
        turn = draw(random)
        assert "=" not in turn.answer.replace("my-llama=", "")


def test_a_name_is_remembered_within_its_conversation_only():
    told = 0
    for seed in range(300):
        name = None
        for message in conversation(Random(seed), 12):
            answer = message["content"] if message["role"] == "assistant" else ""
            if answer.startswith("Hello ") and answer.endswith("! How can I help you?"):
                name = answer.removeprefix("Hello ").removesuffix("! How can I help you?")
            if answer.startswith("Your name is "):
                told += 1
                assert answer == f"Your name is {name}."
            if answer == NO_NAME:
                assert name is None
    assert told > 50


def test_raw_text_is_split_between_prompt_and_continuation():
    random = Random(0)
    for _ in range(500):
        prompt, continuation = raw_text(random)
        assert prompt
        assert continuation[0] in " \n"
