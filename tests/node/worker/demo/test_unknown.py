from random import Random

from node.worker.demo.unknown import HELD_OUT, TRAINING, filled, invented_word, unknown_question


def test_nothing_that_is_held_out_is_trained():
    for held_out, trained in zip(HELD_OUT, TRAINING, strict=True):
        assert held_out
        assert not set(held_out) & set(trained)


def test_questions_are_many_and_reproducible():
    for vocabulary in (TRAINING, HELD_OUT):
        first, again = ([unknown_question(Random(seed), vocabulary) for seed in range(300)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 270


def test_every_placeholder_is_filled_afresh():
    text = filled(Random(0), "{n} {N} {a} {v} {p} {l} {c} {d} {d} {s}")
    assert "{" not in text
    assert len(text.split()) >= 10


def test_no_sentence_has_an_unknown_placeholder():
    known = {"{n}", "{N}", "{a}", "{v}", "{p}", "{l}", "{c}", "{d}", "{s}"}
    for vocabulary in (TRAINING, HELD_OUT):
        for template in (*vocabulary.sentences, *vocabulary.sums):
            for placeholder in known:
                template = template.replace(placeholder, "")
            # What remains may be a piece of code, but no name in braces.
            assert not any(f"{{{letter}}}" in template for letter in "abcdefghijklmnopqrstuvwxyz")


def test_invented_words_are_made_of_letters():
    words = {invented_word(Random(seed)) for seed in range(500)}
    assert len(words) > 450
    assert all(word.isalpha() for word in words)
