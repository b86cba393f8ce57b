from gateway.routing.lengths import MAX_MODELS, OutputLengths


def test_the_answers_seen_decide_what_is_expected():
    lengths = OutputLengths()
    assert lengths.expected("m", 128) == 128
    lengths.saw("m", 40)
    assert lengths.expected("m", 128) == 40
    for _ in range(200):
        lengths.saw("m", 300)
    assert lengths.expected("m", 128) == 300
    assert lengths.expected("other", 7) == 7


def test_an_empty_answer_still_counts_as_one_token():
    lengths = OutputLengths()
    lengths.saw("m", 0)
    assert lengths.expected("m", 128) == 1


def test_models_answered_longest_ago_are_forgotten():
    lengths = OutputLengths()
    for number in range(MAX_MODELS + 5):
        lengths.saw(str(number), 9)
    assert lengths.expected("0", 128) == 128
    assert lengths.expected(str(MAX_MODELS + 4), 128) == 9
