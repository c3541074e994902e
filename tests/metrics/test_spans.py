import pytest

from zoo.metrics.spans import SpanScores, marks_spans, spans_of


def test_spans_are_counted_by_hand():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    guess = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "B-PER"]]
    scores = SpanScores()
    scores.update(guess[:1], truth[:1])
    scores.update(guess[1:], truth[1:])
    found = {name: float(value) for name, value in scores.compute().items()}
    # right: PER 0-1, ORG 0; found 4, wanted 3
    assert found == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})


def test_scores_are_those_of_seqeval():
    from seqeval.metrics import f1_score, precision_score, recall_score

    truth = [["I-A", "I-A", "B-A", "O", "I-B"], ["O", "B-B", "I-A"], ["B-A"]]
    guess = [["I-A", "I-A", "I-A", "O", "I-B"], ["B-B", "I-B", "I-A"], ["O"]]
    scores = SpanScores()
    scores.update(guess, truth)
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found == pytest.approx(
        {
            "precision": precision_score(truth, guess),
            "recall": recall_score(truth, guess),
            "f1": f1_score(truth, guess),
        }
    )


def test_nothing_found_scores_zero():
    scores = SpanScores()
    scores.update([["O", "O"]], [["O", "B-A"]])
    assert {float(value) for value in scores.compute().values()} == {0.0}


def test_which_tags_mark_spans():
    assert marks_spans(["O", "B-A", "I-A", "E-A", "S-A"]) and not marks_spans(["O", "NN"])
    assert spans_of(["B-A", "I-A", "O"]) == [("A", 0, 1)]
