"""How one answer compares with the ideal one: exact match, token F1, ROUGE-L. Each between 0 and 1."""

import re
from collections import Counter

from rouge_score import rouge_scorer

from app.evaluations.normalising import normalised

METRICS = ("exact", "f1", "rouge_l")
_rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """Words for F1, as SQuAD counts them: normalised, English articles left out."""
    return _ARTICLES.sub(" ", normalised(text)).split()


def exact(answer: str, ideal: str) -> float:
    """1 if both say the same after normalising, else 0."""
    return float(normalised(answer) == normalised(ideal))


def f1(answer: str, ideal: str) -> float:
    """Harmonic mean of precision and recall over words (Rajpurkar et al. 2016)."""
    said, wanted = words(answer), words(ideal)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge_l(answer: str, ideal: str) -> float:
    """F-measure over the longest common subsequence of words (Lin 2004), by the rouge-score package."""
    return float(_rouge.score(ideal, answer)["rougeL"].fmeasure)


def scores(answer: str, ideal: str) -> dict[str, float]:
    """All metrics of one answer."""
    return {"exact": exact(answer, ideal), "f1": f1(answer, ideal), "rouge_l": rouge_l(answer, ideal)}
