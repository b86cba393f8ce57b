import pytest

from node.worker.demo import texts


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    texts.lines.cache_clear()
    yield tmp_path
    texts.lines.cache_clear()


def test_lines_words_and_pairs(folder):
    (folder / "some.txt").write_text("a b: c\nd: e f\n")
    assert texts.lines("some") == ("a b: c", "d: e f")
    assert texts.words("some") == ("a", "b:", "c", "d:", "e", "f")
    assert texts.pairs("some") == {"a b": "c", "d": "e f"}


def test_topics_keep_the_lines_of_an_answer(folder):
    (folder / "some.txt").write_text("Who?\nWhat?\n\nOne\ntwo.\n\nThree.\n---\nWhy?\n\nBecause.\n")
    assert texts.topics("some") == (texts.Topic(("Who?", "What?"), "One\ntwo.\n\nThree."), texts.Topic(("Why?",), "Because."))
