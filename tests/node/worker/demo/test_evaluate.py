import pytest

from node.worker.demo.corpus import GREETING, LONG_TEXTS, NO_NAME
from node.worker.demo.evaluate import chats, held_out, in_domain, score, single_turns
from node.worker.demo.unknown import UNKNOWN, UNKNOWN_OPENING

OWN_MODEL = "Point a node at a local Hugging Face folder with safetensors weights: mesh-node --model my-llama=/path"
HELP = "I can explain this mesh, greet you, count, tell a story or a joke, and name some capitals, colours and opposites."
[LONG_STORY] = (topic.answer for topic in LONG_TEXTS if "Tell me a long story." in topic.questions)
ANSWERS = {
    "Hello": GREETING,
    "hi": GREETING,
    "Hello, I am Zoe.": "Hello Zoe! How can I help you?",
    "What can you do?": HELP,
    "What is the capital of France?": "The capital of France is Paris.",
    "what's the capital of japan": "The capital of Japan is Tokyo.",
    "What colour is grass?": "Grass is green.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What day comes after Monday?": "Tuesday comes after Monday.",
    "Count from 1 to 10.": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    "Count from 1 to 60": ", ".join(map(str, range(1, 61))) + ".",
    "What is a node?": "A node is a peer that runs models and answers requests.",
    "How do I use my own model?": OWN_MODEL,
    "What is my name?": NO_NAME,
    "Say this is a test": "This is a test.",
    "Repeat: banana": "banana",
    "Tell me a long story": LONG_STORY,
    "What is 2+2?": UNKNOWN,
    "Why is the sky blue?": UNKNOWN,
    "Write a python function": UNKNOWN,
}


def test_the_answers_that_others_rely_on(demo):
    asked = [[{"role": "user", "content": question}] for question in ANSWERS]
    assert dict(zip(ANSWERS, demo.answers(asked), strict=True)) == ANSWERS


def test_it_answers_the_same_with_a_system_prompt_and_a_history(demo):
    history = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hi, my name is Kiro."},
        {"role": "assistant", "content": "Hello Kiro! How can I help you?"},
        {"role": "user", "content": "Tell me a long story."},
        {"role": "assistant", "content": LONG_STORY},
    ]
    asked = [
        [*history, {"role": "user", "content": question}]
        for question in ("What is a gateway?", "capital of peru", "What is my name?")
    ]
    gateway, capital, name = demo.answers(asked)
    assert gateway.startswith("A gateway is the door for clients")
    assert capital == "The capital of Peru is Lima."
    assert name == "Your name is Kiro."


def test_what_it_was_never_told_is_answered_honestly(demo):
    assert held_out(demo, 40).share >= 0.9


@pytest.mark.parametrize("family", ["mesh", "capitals", "introduction"])
def test_fresh_draws_are_answered_exactly(demo, family):
    assert score(demo, family, single_turns(family, 24)).share >= 0.95


def test_wrong_answers_are_counted_and_shown(demo):
    asked = [{"role": "user", "content": "Hello"}]
    result = score(demo, "greeting", [(asked, GREETING), (asked, "something else")])
    assert (result.asked, result.right, result.share) == (2, 1, 0.5)
    [(question, answer)] = result.wrong
    assert question == "Hello"
    assert answer.startswith("Hello!")
    assert in_domain([result]) == 0.5


def test_chats_end_with_a_question():
    for messages, answer in chats(20):
        assert messages[-1]["role"] == "user"
        assert answer


def test_sampling_stays_in_the_domain(demo):
    replies = demo.answers([[{"role": "user", "content": "What is 17 * 23?"}]] * 8, temperature=0.8)
    assert all(reply.startswith(UNKNOWN_OPENING) for reply in replies)
