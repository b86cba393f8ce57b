"""The text that the demo model learns: conversations drawn from families of questions, all written for this project.

1. A conversation is a pure function of the random generator it is drawn from.
2. One question has one answer: no family may answer what another family answers otherwise.
3. Answers do not depend on earlier turns, with one exception: the model remembers a name that it was told.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from random import Random
from typing import NamedTuple

from node.worker.demo.phrasing import vary
from node.worker.demo.texts import Topic, lines, pairs, topics, words
from node.worker.demo.unknown import ADJECTIVES, TRAINING, UNKNOWN, VERBS, filled, invented_word, unknown_question

PEOPLE = words("people")
CAPITALS = pairs("capitals")
COUNTRY_NICKNAMES = pairs("country_nicknames")
COLOURS = pairs("colours")
OPPOSITES = tuple(pairs("opposites").items())
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August",
    "September", "October", "November", "December",
)  # fmt: skip
GREETING = "Hello! I am the demo model of this mesh. How can I help you?"
NO_NAME = "You have not told me your name."
MESH, SELF, SMALL_TALK, LONG_TEXTS = (topics(name) for name in ("mesh", "self", "small_talk", "long_texts"))


class Turn(NamedTuple):
    question: str
    answer: str


Conversation = list[dict[str, str]]
Family = Callable[[Random], Turn]


def greeting(random: Random) -> Turn:
    if random.random() < 0.2:
        hello = random.choice(("Good morning", "Good afternoon", "Good evening"))
        return Turn(vary(random, hello + random.choice((".", "", "!")), openers=False), GREETING.replace("Hello", hello))
    return Turn(vary(random, random.choice(lines("greetings")), openers=False), GREETING)


def any_name(random: Random) -> str:
    """Return a name, known or invented, in the case in which somebody might type it."""
    name = random.choice(PEOPLE) if random.random() < 0.35 else invented_word(random).capitalize()
    draw = random.random()
    if draw < 0.06:
        name = f"{name} {invented_word(random).capitalize()}"
    return name.lower() if 0.06 < draw < 0.2 else name


def introduction(random: Random) -> Turn:
    name = any_name(random)
    question = vary(random, random.choice(lines("introductions")), openers=False).replace("{}", name)
    return Turn(question, f"Hello {name}! How can I help you?")


def name_question(random: Random) -> str:
    return vary(random, random.choice(lines("name_questions")))


def nameless(random: Random) -> Turn:
    return Turn(name_question(random), NO_NAME)


def capital(random: Random) -> Turn:
    country = random.choice(tuple(COUNTRY_NICKNAMES if random.random() < 0.08 else CAPITALS))
    official = COUNTRY_NICKNAMES.get(country, country)
    question = vary(random, random.choice(lines("capital_questions")).replace("{}", country))
    return Turn(question, f"The capital of {official} is {CAPITALS[official]}.")


def colour(random: Random) -> Turn:
    thing = random.choice(tuple(COLOURS))
    question = vary(random, random.choice(lines("colour_questions")).replace("{}", thing))
    return Turn(question, f"{thing[0].upper()}{thing[1:]} is {COLOURS[thing]}.")


def opposite(random: Random) -> Turn:
    pair = random.choice(OPPOSITES)
    word, other = pair if random.random() < 0.5 else pair[::-1]
    question = vary(random, random.choice(lines("opposite_questions")).replace("{}", word))
    return Turn(question, f"The opposite of {word} is {other}.")


def calendar(random: Random) -> Turn:
    kind, whole, names = random.choice((("day", "week", DAYS), ("month", "year", MONTHS)))
    if random.random() < 0.25:
        question = random.choice(lines("calendar_lists")).format(kind=kind, whole=whole)
        answer = f"The {len(names)} {kind}s of the {whole} are {', '.join(names[:-1])} and {names[-1]}."
        return Turn(vary(random, question), answer)
    index = random.randrange(len(names))
    order, step = random.choice((("after", 1), ("before", -1)))
    question = random.choice(lines("calendar_questions")).format(kind=kind, order=order, name=names[index])
    return Turn(vary(random, question), f"{names[(index + step) % len(names)]} comes {order} {names[index]}.")


def counting(random: Random) -> Turn:
    if random.random() < 0.15:
        start = random.choice((3, 5, 10, random.randrange(2, 21)))
        question = random.choice(lines("counting_down")).format(start=start)
        return Turn(vary(random, question), _listed(range(start, 0, -1)))
    first = 1 if random.random() < 0.5 else random.randrange(1, 95)
    last = min(100, first + random.choice((2, 4, 9, 19, random.randrange(2, 30), random.randrange(2, 100))))
    questions = lines("counting_questions") + (lines("counting_from_one") if first == 1 else ())
    return Turn(vary(random, random.choice(questions).format(first=first, last=last)), _listed(range(first, last + 1)))


def _listed(numbers: range) -> str:
    return ", ".join(map(str, numbers)) + "."


def repetition(random: Random) -> Turn:
    kinds = (TRAINING.nouns, VERBS, ADJECTIVES, (invented_word(random), any_name(random)))
    said = " ".join(random.choice(random.choice(kinds)) for _ in range(random.choice((1, 1, 1, 2, 2, 3))))
    return Turn(vary(random, random.choice(lines("repetitions")), openers=False).replace("{}", said), said)


def unknown(random: Random) -> Turn:
    while True:
        question = unknown_question(random)
        if plain(question) not in known_questions():
            return Turn(question, UNKNOWN)


def about(entries: tuple[Topic, ...]) -> Family:
    """Return a family that asks about each of these topics equally often."""

    def family(random: Random) -> Turn:
        topic = random.choice(entries)
        return Turn(vary(random, random.choice(topic.questions)), topic.answer)

    return family


def plain(question: str) -> str:
    """Return the question without its case and punctuation: how the families are kept apart."""
    return re.sub(r"[^a-z0-9 ]+", "", question.lower()).strip()


@cache
def known_questions() -> frozenset[str]:
    """Return, in plain form, the questions with an answer of their own that an unknown one could equal by chance."""
    asked = {question for group in (MESH, SELF, SMALL_TALK, LONG_TEXTS) for topic in group for question in topic.questions}
    asked |= {*lines("greetings"), *lines("name_questions")}
    asked |= _about_facts("capital_questions", (*CAPITALS, *COUNTRY_NICKNAMES))
    asked |= _about_facts("colour_questions", COLOURS)
    asked |= _about_facts("opposite_questions", (word for pair in OPPOSITES for word in pair))
    return frozenset(plain(question) for question in asked)


def _about_facts(questions: str, things: Iterable[str]) -> set[str]:
    return {question.replace("{}", thing) for question, thing in product(lines(questions), things)}


# How often each family is asked, relative to the others. The unknown is the largest: it has the most to learn.
FAMILIES: dict[str, tuple[float, Family]] = {
    "unknown": (36, unknown),
    "mesh": (20, about(MESH)),
    "self": (8, about(SELF)),
    "small talk": (9, about(SMALL_TALK)),
    "greeting": (5, greeting),
    "introduction": (8, introduction),
    "name": (1.5, nameless),
    "capitals": (9, capital),
    "colours": (3, colour),
    "opposites": (4.5, opposite),
    "calendar": (6, calendar),
    "counting": (6, counting),
    "repetition": (8, repetition),
    "long texts": (4, about(LONG_TEXTS)),
}


def draw(random: Random) -> Turn:
    """Return one question with its answer, from a random family."""
    weights = [weight for weight, _ in FAMILIES.values()]
    [(_, family)] = random.choices(list(FAMILIES.values()), weights)
    return family(random)


def conversation(random: Random, turns: int) -> Conversation:
    """Return a conversation of `turns` questions and answers, sometimes with a system prompt."""
    messages: Conversation = []
    if random.random() < 0.25:
        messages.append({"role": "system", "content": _system_prompt(random)})
    name: str | None = None
    for _ in range(turns):
        question, answer = draw(random)
        if name is not None and (answer == NO_NAME or random.random() < 0.15):
            question, answer = name_question(random), f"Your name is {name}."
        elif told := re.fullmatch(r"Hello (.+)! How can I help you\?", answer):
            name = told[1]
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _system_prompt(random: Random) -> str:
    prompt = random.choice(lines("system_prompts"))
    return filled(random, prompt)


def raw_text(random: Random) -> tuple[str, str]:
    """Return a prompt without any chat markup and its continuation: what a plain completion sees."""
    turn = draw(random)
    if random.random() < 0.5:
        return turn.question, f" {turn.answer}"
    cut = turn.answer.find(" ", random.randrange(len(turn.answer)))
    return (turn.question, f"\n{turn.answer}") if cut < 1 else (turn.answer[:cut], turn.answer[cut:])
