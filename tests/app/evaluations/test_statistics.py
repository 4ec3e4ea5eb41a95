"""Intervals against published values; tests against exact ones; scores against worked examples."""

import numpy as np
import pytest

from app.evaluations import baselines, cases, report, scorers, statistics
from app.evaluations.confusion import confusion
from app.evaluations.models import CaseResult


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    found = statistics.wilson(successes, n)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_mcnemar_is_the_sign_test_on_rows_that_differ():
    assert statistics.mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(0, 0) == 1.0


def test_bca_interval_of_the_law_school_data():
    # Efron & Tibshirani, An Introduction to the Bootstrap (1993), table 3.1: mean LSAT 600.27, standard error 10.8.
    lsat = [576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594]
    found = statistics.mean(lsat)
    assert found.value == pytest.approx(600.27, abs=0.01)
    assert found.low == pytest.approx(600.27 - 1.96 * 10.4, abs=3)
    assert found.high == pytest.approx(600.27 + 1.96 * 10.4, abs=3)
    assert statistics.mean(lsat) == found, "the same rows give the same interval"


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        found = statistics.mean(rng.exponential(2.0, 60))
        hits += found.low <= 2.0 <= found.high
    assert 51 <= hits <= 60


def test_pairing_sees_what_separate_intervals_hide():
    rng = np.random.default_rng(2)
    hard = rng.uniform(0, 1, 80)
    better = np.clip(hard + 0.03 + rng.normal(0, 0.01, 80), 0, 1.2)
    assert statistics.mean(better).low < statistics.mean(hard).high
    assert statistics.clearly_better(list(better), list(hard))
    assert not statistics.clearly_better(list(hard), list(hard))


@pytest.mark.parametrize(
    ("answer", "ideal", "exact", "f1"),
    [
        ("The card arrival.", "card arrival", 0.0, 1.0),
        ("Card  arrival!", "card arrival", 1.0, 1.0),
        ("my card was lost", "card lost", 0.0, 2 / 3),
        ("", "card", 0.0, 0.0),
        ("dog", "cat", 0.0, 0.0),
    ],
)
def test_scores_of_worked_examples(answer, ideal, exact, f1):
    found = scorers.scores(answer, ideal)
    assert found["exact"] == exact
    assert found["f1"] == pytest.approx(f1)


def test_rouge_l_of_the_paper_s_example():
    # Lin (2004): "police killed the gunman" against "police kill the gunman" shares police, the, gunman.
    assert scorers.rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert scorers.rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)


def test_nearest_row_and_majority():
    questions = ["where is my card", "my card is lost", "top up failed", "top up not working"]
    answers = ["arrival", "lost", "top up", "top up"]
    found = baselines.Nearest(questions, answers).answers_for(["I lost my card!", "the top up failed again", "zzz"])
    assert found[:2] == ["lost", "top up"]
    assert baselines.majority(["a", "B", "b", "c"]) == "B"


def rows(
    right: int, wrong: int, base_right: int = 0, nearest_right: int = 0, majority_right: int = 0
) -> list[CaseResult]:
    n = right + wrong

    def score(is_right: bool) -> dict[str, float]:
        return {"exact": float(is_right), "f1": float(is_right), "rouge_l": float(is_right)}

    return [
        CaseResult(
            position=i, rid=i, prompt="q", ideal="yes", tuned_answer="yes" if i < right else "no", error="",
            scores={
                "tuned": score(i < right) | {"nll": 1.0, "tokens": 2},
                "base": score(i < base_right) | {"nll": 6.0, "tokens": 2},
                "nearest": score(i < nearest_right),
                "majority": score(i < majority_right),
            },
        )
        for i in range(n)
    ]  # fmt: skip


def test_the_verdict_is_good_only_when_it_beats_what_needs_no_model():
    assert report.summary("labels", "test", rows(84, 16, 0, 60, 10), has_base=True)["verdict"]["kind"] == "good"
    copied = report.summary("labels", "test", rows(84, 16, 0, 86, 10), has_base=True)["verdict"]
    assert copied["kind"] == "warn"
    assert "most similar training row" in copied["sentence"]
    trivial = report.summary("labels", "test", rows(50, 50, 0, 20, 50), has_base=True)["verdict"]
    assert trivial["kind"] == "bad"
    unclear = report.summary("labels", "test", rows(84, 16, 82, 10, 10), has_base=True)["verdict"]
    assert unclear["kind"] == "warn"
    assert "base model" in unclear["sentence"]


def test_few_rows_claim_little():
    """Five right answers of five say neither "always right" nor "copying does as well"."""
    found = report.summary("answers", "test", rows(5, 0, 0, 3, 0), has_base=True)
    value, low, high, _n = found["table"]["f1"]["tuned"]
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(0.5655, abs=5e-4)  # Wilson's interval of 5 of 5
    assert "too few" in found["verdict"]["sentence"]
    assert "without any model" not in found["verdict"]["sentence"]


def test_loss_is_weighted_by_tokens_and_perplexity_is_its_exponential():
    two = rows(1, 1)
    two[0].scores["tuned"] |= {"nll": 10.0, "tokens": 10}
    two[1].scores["tuned"] |= {"nll": 6.0, "tokens": 2}
    table = report.summary("labels", "test", two, has_base=True)["table"]
    assert table["loss"]["tuned"][0] == pytest.approx(16 / 12)
    assert table["perplexity"]["tuned"][0] == pytest.approx(3.7937, abs=1e-3)


def test_rows_with_an_error_count_nowhere():
    some = rows(10, 0)
    some[0].error = "too long"
    found = report.summary("labels", "test", some, has_base=True)
    assert (found["n"], found["errors"]) == (9, 1)


def test_confusion_counts_pairs_and_answers_outside_the_labels():
    found = confusion(
        [
            CaseResult(ideal="Lost", tuned_answer="lost.", error=""),
            CaseResult(ideal="Lost", tuned_answer="found", error=""),
            CaseResult(ideal="Found", tuned_answer="banana", error=""),
        ]
    )
    assert found["labels"] == ["Found", "Lost"]
    assert found["matrix"] == [[0, 0, 1], [1, 1, 0]]
    assert {m["said"] for m in found["mistakes"]} == {"Found", "banana"}


def test_kind_of_the_task():
    ask = [cases.Case(i, [cases.Message(role="user", content="q")], "yes" if i % 2 else "no") for i in range(20)]
    assert cases.kind_of(ask, [case.ideal for case in ask]) == "labels"
    free = [cases.Case(i, ask[0].messages, f"a long answer number {i} with words") for i in range(20)]
    assert cases.kind_of(free, [case.ideal for case in free]) == "answers"
    assert cases.kind_of([cases.Case(0, [], "text")], []) == "text"
