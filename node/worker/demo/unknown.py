"""Questions that the demo model must not try to answer: as many, and as different, as words allow.

1. Every one of them has the same answer, `UNKNOWN`.
2. No sentence and no noun of the held-out questions is in the training's.
3. In a sentence, `{n}` and `{N}` are nouns, `{a}` an adjective, `{v}` a verb, `{p}` a proper name, `{l}` a language,
   `{c}` a programming language, `{d}` a number and `{s}` a sum.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from node.worker.demo.phrasing import vary
from node.worker.demo.texts import lines, words

UNKNOWN_OPENING = "I am only a small demo model"
UNKNOWN = (
    f"{UNKNOWN_OPENING}, so I cannot answer that. "
    "Ask me about this mesh, or serve a real model: mesh-node --model my-llama=/path"
)  # fmt: skip
ADJECTIVES = words("adjectives")
VERBS = words("verbs")
PROPER_NAMES = words("proper_names")
ALPHABETS = lines("alphabets")
LANGUAGES = words("languages")
CODE_LANGUAGES = words("code_languages")
SIGNS = words("signs")
ONSETS = words("onsets")
NUCLEI = words("nuclei")
NEAR_MISSES = lines("capital_questions") + lines("colour_questions") + lines("opposite_questions")
CODAS = ("", "", "", *words("codas"))


class Vocabulary(NamedTuple):
    """What questions are made of: one for training, one held out."""

    nouns: Sequence[str]
    sentences: Sequence[str]
    sums: Sequence[str]
    foreign: Sequence[str]


TRAINING = Vocabulary(words("nouns"), lines("unknown_questions"), lines("sums"), lines("foreign"))
HELD_OUT = Vocabulary(
    words("held_out/nouns"), lines("held_out/questions"), lines("held_out/sums"), lines("held_out/foreign")
)  # fmt: skip


def unknown_question(random: Random, vocabulary: Vocabulary = TRAINING) -> str:
    """Return a question whose only honest answer is `UNKNOWN`."""
    draw = random.random()
    if draw < 0.11 and vocabulary is TRAINING:
        return vary(random, _near_miss(random, vocabulary))
    if draw < 0.14:
        return sentence(random, vocabulary).upper()
    if draw < 0.62:
        return vary(random, sentence(random, vocabulary))
    if draw < 0.78:
        return vary(random, filled(random, random.choice(vocabulary.sums), vocabulary))
    if draw < 0.86:
        return random.choice(vocabulary.foreign) if random.random() < 0.6 else _foreign_salad(random, vocabulary)
    if draw < 0.90:
        return _salad(random, vocabulary)
    if draw < 0.94:
        return _noise(random)
    return " ".join(vary(random, sentence(random, vocabulary)) for _ in range(random.choice((2, 3))))


def _near_miss(random: Random, vocabulary: Vocabulary) -> str:
    """Return a question that sounds as if it had an answer here, about something that nobody told the model."""
    thing = random.choice(("{p}", "{p}", "{n}", "a {n}", "the {n}", "{a} {n}s"))
    return filled(random, random.choice(NEAR_MISSES).replace("{}", thing), vocabulary)


def sentence(random: Random, vocabulary: Vocabulary = TRAINING) -> str:
    """Return one sentence of the vocabulary with random words in it."""
    return filled(random, random.choice(vocabulary.sentences), vocabulary)


def filled(random: Random, template: str, vocabulary: Vocabulary = TRAINING) -> str:
    """Return `template` with a fresh random word in every placeholder."""

    def noun() -> str:
        return random.choice(vocabulary.nouns) if random.random() < 0.7 else invented_word(random)

    def proper_name() -> str:
        return random.choice(PROPER_NAMES) if random.random() < 0.4 else invented_word(random).capitalize()

    kinds: dict[str, Callable[[], str]] = {
        "{n}": noun,
        "{N}": noun,
        "{p}": proper_name,
        "{a}": lambda: random.choice(ADJECTIVES),
        "{v}": lambda: random.choice(VERBS),
        "{l}": lambda: random.choice(LANGUAGES),
        "{c}": lambda: random.choice(CODE_LANGUAGES),
        "{s}": lambda: _sum(random),
        "{d}": lambda: _number(random),
    }
    for placeholder, word in kinds.items():
        while placeholder in template:
            template = template.replace(placeholder, word(), 1)
    return template


def invented_word(random: Random) -> str:
    """Return a word that nobody has used: up to three random syllables."""
    syllables = random.choice((1, 2, 2, 2, 3))
    return "".join(random.choice(ONSETS) + random.choice(NUCLEI) + random.choice(CODAS) for _ in range(syllables))


def _number(random: Random) -> str:
    return str(random.randrange(1, 10 ** random.choice((1, 1, 2, 2, 3, 4, 6))))


def _sum(random: Random) -> str:
    sign = random.choice(SIGNS)
    space = " " if sign.isalpha() or random.random() < 0.5 else ""
    return space.join((_number(random), sign.replace("_", " "), _number(random)))


def _salad(random: Random, vocabulary: Vocabulary) -> str:
    kinds = (vocabulary.nouns, ADJECTIVES, VERBS, (invented_word(random),))
    return " ".join(random.choice(random.choice(kinds)) for _ in range(random.randrange(1, 12)))


def _noise(random: Random) -> str:
    alphabet = random.choice(ALPHABETS)
    return "".join(random.choice(alphabet) for _ in range(random.choice((1, 2, 3, 5, 8, 13, 21, 34))))


def _foreign_salad(random: Random, vocabulary: Vocabulary) -> str:
    every = " ".join(vocabulary.foreign).split()
    return " ".join(random.choice(every) for _ in range(random.randrange(2, 8)))
