"""Measure the demo model: `python -m node.worker.demo.evaluate DIR`. Prints how often each family is answered exactly.

1. Questions are fresh draws: their seed is never a training seed.
2. Generation is plain `transformers` in float32, greedy unless a temperature is given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.models import demo_model_path
from node.worker.demo.corpus import FAMILIES, Conversation, conversation
from node.worker.demo.unknown import HELD_OUT, UNKNOWN_OPENING, unknown_question

SEED = "evaluation"
BATCH = 32
MAX_NEW_TOKENS = 480


class Demo:
    """A loaded demo model that answers conversations."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answers(self, conversations: Sequence[Conversation], *, temperature: float = 0.0) -> list[str]:
        """Return the next assistant message of every conversation; temperature 0 is greedy."""
        replies: list[str] = []
        for start in range(0, len(conversations), BATCH):
            replies += self._batch(conversations[start : start + BATCH], temperature)
        return replies

    def _batch(self, conversations: Sequence[Conversation], temperature: float) -> list[str]:
        texts = [self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.inference_mode():
            output = self.model.generate(
                encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=MAX_NEW_TOKENS, **sampling
            )
        return list(self.tokenizer.batch_decode(output[:, encoded.input_ids.shape[1] :], skip_special_tokens=True))

    def answer(self, question: str) -> str:
        """Return the greedy answer to one question without a history."""
        return self.answers([[{"role": "user", "content": question}]])[0]


class Score(NamedTuple):
    name: str
    asked: int
    right: int
    wrong: list[tuple[str, str]]  # question, answer

    @property
    def share(self) -> float:
        return self.right / self.asked


def score(demo: Demo, name: str, cases: Sequence[tuple[Conversation, str]], *, temperature: float = 0.0) -> Score:
    """Ask every case and count the answers that equal the expected one."""
    answers = demo.answers([asked for asked, _ in cases], temperature=temperature)
    wrong = [(asked[-1]["content"], got) for (asked, expected), got in zip(cases, answers, strict=True) if got != expected]
    return Score(name, len(cases), len(cases) - len(wrong), wrong)


def single_turns(family: str, count: int) -> list[tuple[Conversation, str]]:
    """Return `count` fresh first questions of one family with their answers."""
    random = Random(f"{SEED}/{family}")  # noqa: S311 (questions to ask, no secret)
    turns = [FAMILIES[family][1](random) for _ in range(count)]
    return [([{"role": "user", "content": turn.question}], turn.answer) for turn in turns]


def chats(count: int) -> list[tuple[Conversation, str]]:
    """Return `count` fresh chats of two to twelve turns, some with a system prompt, of which the last answer is asked."""
    random = Random(f"{SEED}/chats")  # noqa: S311 (questions to ask, no secret)
    whole = [conversation(random, random.randrange(2, 13)) for _ in range(count)]
    return [(messages[:-1], messages[-1]["content"]) for messages in whole]


def held_out(demo: Demo, count: int) -> Score:
    """Ask questions of words and sentences that were never trained, and count the honest answers."""
    random = Random(f"{SEED}/held out")  # noqa: S311 (questions to ask, no secret)
    questions = [unknown_question(random, HELD_OUT) for _ in range(count)]
    answers = demo.answers([[{"role": "user", "content": question}] for question in questions])
    wrong = [(q, a) for q, a in zip(questions, answers, strict=True) if not a.startswith(UNKNOWN_OPENING)]
    return Score("unknown, held out", count, count - len(wrong), wrong)


def in_domain(scores: Sequence[Score]) -> float:
    """Return the share of exact answers over the families with an answer of their own, weighted as they are asked in training."""
    known = [s for s in scores if s.name in FAMILIES and s.name != "unknown"]
    weights = [FAMILIES[s.name][0] for s in known]
    return sum(w * s.share for w, s in zip(weights, known, strict=True)) / sum(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=demo_model_path())
    parser.add_argument("--count", type=int, default=200, help="questions per family")
    parser.add_argument("--wrong", type=int, default=3, help="wrong answers to show per family")
    options = parser.parse_args()
    torch.manual_seed(0)
    demo = Demo(options.folder)
    scores = []
    for family in FAMILIES:
        scores.append(score(demo, family, single_turns(family, options.count)))
        show(scores[-1], options.wrong)
    show(held_out(demo, options.count * 2), options.wrong)
    show(score(demo, "chats of 2 to 12 turns", chats(options.count)), options.wrong)
    show(score(demo, "chats, temperature 1", chats(options.count), temperature=1.0), options.wrong)
    print(f"{'in domain, weighted':24} {in_domain(scores):6.1%}")


def show(result: Score, wrong: int) -> None:
    print(f"{result.name:24} {result.share:6.1%}  ({result.right}/{result.asked})", flush=True)
    for question, answer in result.wrong[:wrong]:
        print(f"    {question!r} -> {answer!r}")


if __name__ == "__main__":
    main()
