"""How people type: the same question with other openers, case and punctuation."""

from random import Random

from node.worker.demo.texts import lines

OPENERS = lines("openers")
CLOSERS = lines("closers")
CONTRACTIONS = (
    ("What is ", "What's "),
    ("What is ", "Whats "),
    ("Who is ", "Who's "),
    ("Where is ", "Where's "),
    ("I am ", "I'm "),
)


def vary(random: Random, text: str, *, openers: bool = True) -> str:
    """Return `text` as somebody else would type it. A `{}` in it stays as it is, for the caller to fill."""
    if random.random() < 0.35:
        return text
    if random.random() < 0.3:
        text = text.replace(*random.choice(CONTRACTIONS))
    if openers and random.random() < 0.2:
        text = random.choice(OPENERS) + " " + _decapitalised(text)
    if openers and random.random() < 0.08:
        text = text.rstrip("?.!") + random.choice(CLOSERS)
    return _punctuated(random, _cased(random, text))


def _decapitalised(text: str) -> str:
    return text if text.startswith("I ") else text[:1].lower() + text[1:]


def _cased(random: Random, text: str) -> str:
    draw = random.random()
    if draw < 0.4:
        return text.lower()
    if draw < 0.5:
        return _decapitalised(text)
    # Whole sentences in capitals are tokens that the model hardly knows: it may call them unknown.
    return text.upper() if draw < 0.57 and len(text.split()) <= 2 else text


def _punctuated(random: Random, text: str) -> str:
    draw = random.random()
    bare = text.rstrip("?.!")
    if draw < 0.4:
        return bare
    if draw < 0.5:
        return bare + random.choice(("??", " ?", "!", "...", "?!", ".", "!!", " "))
    return text
