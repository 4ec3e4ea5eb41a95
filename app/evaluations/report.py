"""From scored rows to a table with intervals and a verdict in words, honest about what needs no model."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from app.core.numbers import percent
from app.evaluations import statistics
from app.evaluations.models import CaseResult

SYSTEMS = ("tuned", "base", "external", "nearest", "majority")
FEW = 30
_NO_BETTER = "That is no better than always giving the most frequent answer."
_COPIED = "Copying the answer of the most similar training row does about as well, without any model."
_METRICS = {"labels": ("exact",), "answers": ("f1", "rouge_l", "exact"), "text": ()}


def summary(
    kind: str,
    split: str,
    rows: Sequence[CaseResult],
    *,
    has_base: bool,
    external: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the page shows beside the rows themselves; values as [value, low, high, n].

    `external`: the external model of the plan, whose name and host are shown.
    """
    everything = rows
    own, rows = [row for row in rows if row.rid < 0], [row for row in rows if row.rid >= 0]
    good = [row for row in rows if not row.error]
    table: dict[str, dict[str, list[float]]] = {}
    for metric in _METRICS[kind]:
        for system in SYSTEMS:
            values = _values(good, system, metric)
            if values:
                table.setdefault(metric, {})[system] = _interval(metric, values)
    for system in ("tuned", "base"):
        pairs = [row.scores[system] for row in good if "nll" in row.scores.get(system, {})]
        pairs = [pair for pair in pairs if pair["tokens"] > 0]
        if pairs:
            loss = statistics.ratio([p["nll"] for p in pairs], [p["tokens"] for p in pairs])
            table.setdefault("loss", {})[system] = [loss.value, loss.low, loss.high, loss.n]
            table.setdefault("perplexity", {})[system] = [
                *(math.exp(min(30.0, value)) for value in (loss.value, loss.low, loss.high)),
                loss.n,
            ]
    found = {"kind": kind, "split": split, "n": len(good), "errors": len(rows) - len(good), "table": table}
    if own:
        found["own"] = _own(own)
    found["difference"] = _difference(kind, good) if has_base else None
    if external is not None:
        found["external"] = _external(external, everything) | {"difference": _difference(kind, good, "external")}
    found["verdict"] = _verdict(kind, good, found)
    return found


def _own(rows: Sequence[CaseResult]) -> dict[str, Any]:
    """Of the project's own tests: how many were asked and answered exactly, and the mean of shared words.

    People chose them, so they say nothing about other rows: no interval, and apart from the others.
    """
    good = [row for row in rows if not row.error]
    means = {}
    for system in ("tuned", "base", "external"):
        values = _values(good, system, "f1")
        if values:
            means[system] = [int(sum(_values(good, system, "exact"))), sum(values) / len(values), len(values)]
    return {"n": len(good), "errors": len(rows) - len(good), "systems": means}


def _external(plan: dict[str, str], rows: Sequence[CaseResult]) -> dict[str, Any]:
    """Of the external model: how many answers came, failed or were cut, why, and the tokens as its server counts."""
    said = [row.scores["external"] for row in rows if "external" in row.scores]
    reasons = Counter(row.external_error for row in rows if row.external_error)
    return {
        "name": plan["name"],
        "host": plan["host"],
        "n": len(said),
        "failed": reasons.total(),
        "reasons": [reason for reason, _count in reasons.most_common(3)],
        "cut": int(sum(one["is_cut"] for one in said)),
        "prompt_tokens": int(sum(one["prompt_tokens"] for one in said)),
        "completion_tokens": int(sum(one["completion_tokens"] for one in said)),
    }


def _values(rows: Sequence[CaseResult], system: str, metric: str) -> list[float]:
    return [row.scores[system][metric] for row in rows if metric in row.scores.get(system, {})]


def _interval(metric: str, values: list[float]) -> list[float]:
    # Equal values have no spread to draw from: rows that are all right or all wrong count like a rate.
    is_rate = metric == "exact" or set(values) in ({0.0}, {1.0})
    found = statistics.wilson(int(sum(values)), len(values)) if is_rate else statistics.mean(values)
    return [found.value, found.low, found.high, found.n]


def _difference(kind: str, rows: Sequence[CaseResult], other: str = "base") -> dict[str, Any] | None:
    """Tuned against another on the rows that both answered: the first metric of the kind, or loss a token for plain
    text."""
    metric = (_METRICS[kind] or ("loss",))[0]
    if metric == "loss":
        both = [r.scores for r in rows if {"tuned", other} <= set(r.scores) and r.scores["tuned"].get("tokens")]
        first = [-s["tuned"]["nll"] / s["tuned"]["tokens"] for s in both]
        second = [-s[other]["nll"] / max(1, s[other]["tokens"]) for s in both]
    else:
        both = [r.scores for r in rows if all(metric in r.scores.get(name, {}) for name in ("tuned", other))]
        first, second = [s["tuned"][metric] for s in both], [s[other][metric] for s in both]
    if len(first) < 2:
        return None
    found = statistics.difference(first, second)
    return {
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "is_clear": statistics.clearly_better(first, second),
        "is_worse": statistics.clearly_better(second, first),
    }


def _verdict(kind: str, rows: Sequence[CaseResult], found: dict[str, Any]) -> dict[str, Any]:
    if not rows:
        return _said("bad", "Nothing could be scored", "Every row was refused by the model server; see the rows below.")
    if kind == "text":
        return _text_verdict(found)
    metric = _METRICS[kind][0]
    table = found["table"][metric]
    tuned, low, high, n = table["tuned"]
    if kind == "labels":
        title = f"Right in {percent(tuned)} of {n:.0f} test rows"
        sentence = f"On many more rows of this kind it would be between {percent(low)} and {percent(high)}."
    else:
        title = f"Shares {percent(tuned)} of its words with the ideal answers"
        sentence = (
            f"Counted over {n:.0f} rows. On many more rows of this kind it would be between {percent(low)} and "
            f"{percent(high)}."
        )
    evidence = _beside(table, kind, found.get("external"))
    if n < FEW:
        evidence.append(f"{n:.0f} rows are few: the interval is wide. Keep at least 100 rows for testing.")
    nearest = _values(rows, "nearest", metric)
    own = _values(rows, "tuned", metric)
    majority = _values(rows, "majority", metric)
    for opponent, name, kind_of_it, words in (
        (majority, "always giving the most frequent answer", "bad", _NO_BETTER),
        (nearest, "copying the answer of the most similar training row", "warn", _COPIED),
    ):
        if opponent and not statistics.clearly_better(own, opponent):
            if n < FEW:
                words, kind_of_it = f"{n:.0f} rows are too few to say whether it beats {name}.", "warn"
            return _said(kind_of_it, title, f"{sentence} {words}", evidence)
    difference = found["difference"]
    if difference is not None and not difference["is_clear"]:
        return _said("warn", title, f"{sentence} It is not clearly better than the base model.", evidence)
    return _said("good", title, sentence, evidence)


def _beside(table: dict[str, list[float]], kind: str, external: dict[str, Any] | None) -> list[str]:
    """One sentence for each system that it is compared with."""
    lines = []
    names = {
        "base": "The base model",
        "external": external["name"] if external else "",
        "nearest": "Copying the answer of the most similar training row",
        "majority": "Always giving the most frequent answer",
    }
    for system, name in names.items():
        if system in table:
            value, low, high, _ = table[system]
            lines.append(f"{name}: {percent(value)} ({percent(low)} to {percent(high)}).")
    if kind == "labels" and "base" in table and table["base"][0] < 0.05:
        lines.append("The base model’s low score is mostly form: it was never told which answers exist.")
    if external is not None:
        lines += _about(external, table, kind)
    return lines


def _about(external: dict[str, Any], table: dict[str, list[float]], kind: str) -> list[str]:
    """What has to be known before an external model's score is believed."""
    name, lines = external["name"], []
    difference = external["difference"]
    if difference is not None and difference["is_worse"]:
        lines.append(f"{name} is clearly better than your model on the rows that both answered.")
    elif difference is not None and not difference["is_clear"]:
        lines.append(f"Your model is not clearly better than {name} on the rows that both answered.")
    if kind == "labels" and "external" in table and table["external"][0] < 0.05:
        lines.append(f"{name}’s low score is mostly form: it was never told which answers exist.")
    return lines


def _text_verdict(found: dict[str, Any]) -> dict[str, Any]:
    tuned = found["table"]["perplexity"]["tuned"]
    title = f"Hesitates between {tuned[0]:.1f} options a token"
    sentence = f"On {tuned[3]:.0f} texts it has never seen (between {tuned[1]:.1f} and {tuned[2]:.1f})."
    base = found["table"]["perplexity"].get("base")
    evidence = (
        [f"The base model hesitates between {base[0]:.1f}."] if base else ["A new GPT has no base model to compare."]
    )
    is_worse = found["difference"] is not None and not found["difference"]["is_clear"]
    return _said("warn" if is_worse else "good", title, sentence, evidence)


def _said(kind: str, title: str, sentence: str, evidence: list[str] | None = None) -> dict[str, Any]:
    return {"kind": kind, "title": title, "sentence": sentence, "evidence": evidence or []}
