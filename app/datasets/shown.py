"""What the data pages show: rows as cells, words for states, advice on whether there is enough. No session here."""

import difflib
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from app.core.db import utcnow
from app.core.numbers import number
from app.core.work import LeasedWork
from app.datasets import plans
from app.datasets.cleaning import STEPS
from app.datasets.findings import REASONS, Reason
from app.datasets.mapping import Mapping, column
from app.datasets.models import CleaningPlan, SourceFile
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan
from app.datasets.reports import PrepareReport, Shown, StepReport
from app.datasets.shapes import Histogram
from app.datasets.statistics import Statistics
from app.datasets.steps.contract import Step
from app.datasets.tables import count, page, search
from app.datasets.turns import text_of

PER_PAGE = 100
LIVE = ("queued", "running")
CELL_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column in a table of rows."""

    label: str
    kind: str = ""
    histogram: Histogram | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a table shows it; `number` counts from 1 in the whole set."""

    number: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Rows:
    """A page of rows."""

    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    total: int = 0
    page: int = 1
    term: str = ""


def left(work: LeasedWork) -> float | None:
    """Seconds until the work is done at the speed so far; None before that can be told."""
    if not work.done or not work.total or work.work_started_at is None:
        return None
    elapsed = (utcnow() - work.work_started_at).total_seconds()
    return elapsed * (work.total - work.done) / work.done if elapsed >= 2 else None


def _range(histogram: Histogram) -> str:
    if not histogram.bars:
        return ""
    unit = f" {histogram.unit}" if histogram.unit else ""
    if histogram.low == histogram.high:
        return f"{number(histogram.low)}{unit}"
    return f"{number(histogram.low)}–{number(histogram.high)}{unit}"


def _column(label: str, kind: str, histogram: Histogram) -> Column:
    return Column(label, kind, histogram, _range(histogram))


def _found(paths: list[Path], page_number: int, term: str) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    offset = (page_number - 1) * PER_PAGE
    if term:
        return search(paths, term, offset, PER_PAGE)
    return list(enumerate(page(paths, offset, PER_PAGE), offset)), count(paths)


def example_rows(paths: list[Path], statistics: Statistics, page_number: int = 1, term: str = "") -> Rows:
    """A page of the working set: question and answer, or text, and the label where there are labels."""
    found, total = _found(paths, page_number, term)
    is_chat, has_labels = statistics.chat_rows > 0, statistics.distinct_labels > 1
    if is_chat:
        columns = [
            _column("Question", "Text", statistics.questions),
            _column("Answer", "Label" if has_labels else "Text", statistics.answers),
        ]
        if statistics.turns > 2 * statistics.chat_rows:
            columns.append(Column("Turns", "Number"))
    else:
        columns = [_column("Text", "Text", statistics.answers)]
    rows = [Row(index + 1, _example_cells(example, len(columns))) for index, example in found]
    return Rows(columns, rows, total, page_number, term)


def _example_cells(example: dict[str, Any], width: int) -> list[str]:
    if example["kind"] == "text":
        return [_cell(example["text"]), *[""] * (width - 1)]
    turns = [m for m in example["messages"] if m["role"] != "system"]
    question = next((m["content"] for m in turns if m["role"] == "user"), "")
    answer = next((m["content"] for m in reversed(turns) if m["role"] == "assistant"), "")
    return [_cell(question), _cell(answer), str(len(turns))][:width]


def source_rows(paths: list[Path], file: SourceFile, page_number: int = 1, term: str = "") -> Rows:
    """A page of the file's own rows and columns."""
    found, total = _found(paths, page_number, term)
    shapes = file.detected.get("shapes", [])
    columns = [_column(s["name"], s["kind"], Histogram.model_validate(s["histogram"])) for s in shapes]
    rows = [Row(index + 1, [_cell(text_of(values.get(c.label))) for c in columns]) for index, values in found]
    return Rows(columns, rows, total, page_number, term)


def _cell(text: str) -> str:
    """At most 300 characters in one line, with line breaks shown."""
    flat = " ↵ ".join(text[: 2 * CELL_CHARACTERS].splitlines())
    return flat if len(flat) <= CELL_CHARACTERS else flat[:CELL_CHARACTERS] + "…"


@dataclass(frozen=True, slots=True)
class FixCard:
    """A suggested or applied step, in words."""

    name: str
    title: str
    sentence: str
    count: int
    is_applied: bool
    icon: str
    verb: str
    example: Shown | None
    default: str = "on"


def _title(step: Step, count: int) -> str:
    if not count:
        return "No row was touched"
    return step.words.one if count == 1 else step.words.many % {"n": number(count)}


def fix_cards(report: PrepareReport | None) -> list[FixCard]:
    """Every step with something to do or done, open ones first, by gain."""
    cards = []
    for step in report.steps if report else []:
        touched = step.changed + step.removed + step.marked
        if not touched and not step.is_applied:
            continue
        known = STEPS[step.name]
        words, example = known.words, next((e for e in step.examples if e.before.strip()), None)
        cards.append(
            FixCard(
                step.name, _title(known, touched), words.why, touched, step.is_applied, words.icon, words.verb, example,
                known.default,
            )
        )  # fmt: skip
    return sorted(cards, key=lambda card: (card.is_applied, -card.count))


def step_of(report: PrepareReport | None, name: str) -> StepReport | None:
    """One step's report."""
    return next((step for step in report.steps if step.name == name), None) if report else None


def diff_parts(before: str, after: str) -> list[tuple[str, str, str]]:
    """Words as (kind, before, after): same, changed. Invisible characters are shown by name."""
    old, new = (_WORD.findall(visible(text)) for text in (before, after))
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        parts.append(("same" if kind == "equal" else "changed", "".join(old[a:b]), "".join(new[c:d])))
    return parts


_WORD = re.compile(r"\w+|\s+|[^\w\s]")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text with invisible characters as ⟨U+200B⟩ and line breaks as ↵."""
    return _INVISIBLE.sub(lambda m: f"⟨U+{ord(m.group()):04X}⟩", text).replace("\n", "↵")


def brief(text: str) -> str:
    """A short piece of a text for a card, invisible characters shown."""
    shown = visible(text)
    return shown if len(shown) <= 90 else shown[:90] + "…"


def finding_cards(findings: list[Any], file: SourceFile) -> list[dict[str, Any]]:
    """Findings with their advice and fixes; the choice in force is marked."""
    options = {"wrong_encoding": "repair", "short_rows": "pad", "long_rows": "join", "open_quotes": "skip",
               "bad_json": "skip", "doubled_keys": "number", "mistyped_columns": "keep",
               "has_header": "true"} | file.options  # fmt: skip
    cards = []
    for finding in findings:
        reason = REASONS.get(finding.code) or Reason(finding.sentence, "")
        fixes = [
            {
                "label": f.label,
                "name": f.name,
                "value": f.value,
                "is_current": str(options.get(f.name)).lower() == f.value,
            }
            for f in reason.fixes
        ]
        cards.append({"finding": finding, "title": reason.title, "advice": reason.advice, "fixes": fixes})
    return cards


def settled(cards: list[dict[str, Any]], file: SourceFile) -> list[dict[str, str]]:
    """Choices in force whose problem they made vanish, so that no finding has their buttons; `usual` takes one back."""
    at_hand = {fix["name"] for card in cards for fix in card["fixes"]}
    usual = ReadOptions().model_dump(include=set(_SETTLED))
    return [
        {"title": REASONS[code].title, "label": fix.label, "name": name, "usual": usual[name]}
        for name, code in _SETTLED.items()
        for fix in REASONS[code].fixes
        if name not in at_hand and fix.name == name and file.options.get(name, usual[name]) == fix.value != usual[name]
    ]


# The options that can leave nothing to find, each with the problem that it settles.
_SETTLED = {"open_quotes": "quote.unclosed", "mistyped_columns": "key.unknown"}
REPAIR_WORDS = {
    "context": "Keep the first turn, not learned",
    "drop": "Leave the turn out",
    "join": "Join them into one",
    "last": "Keep the last one",
    "learn": "Learn the answer, without comparing",
    "out": "Leave the rows out",
}


def mapping_values(mapping: Mapping, columns: list[str]) -> dict[str, Any]:
    """The mapping as the form's fields."""
    values: dict[str, Any] = {
        name: getattr(mapping, name)
        for name in (
            "shape", "messages", "history", "label", "roles", "chosen", "rejected", "rating", "cell", "repairs",
        )
    }  # fmt: skip
    for target in ("prompt", "answer", "system", "text"):
        template = getattr(mapping, target)
        alone, then = _columns_in(template, columns)
        values[f"{target}_column"], values[f"{target}_then"] = alone, then
        values[f"{target}_template"] = "" if alone else template
    return values


def _columns_in(template: str, columns: list[str]) -> tuple[str, str]:
    """The one column that the template stands for, or the two that it joins; else empty."""
    first, _, second = template.partition("\n\n")
    alone = next((name for name in columns if first == column(name)), "")
    then = next((name for name in columns if second == column(name)), "")
    return (alone, then) if alone and bool(second) == bool(then) else ("", "")


@dataclass(frozen=True, slots=True)
class State:
    """The badge beside the title; `path` is where one can do something about it, `count` the number in its words."""

    tone: str
    words: str
    path: str = ""
    count: int = 0


def state_of(files: list[SourceFile], plan: CleaningPlan | None) -> State:
    """How far the rows are from a training."""
    if not files:
        return State("", "Empty")
    if any(file.state in LIVE for file in files):
        return State("live", "Reading")
    if plan is not None and plan.state in LIVE:
        return State("live", "Preparing")
    if failed := next((file for file in files if file.state == "failed"), None):
        return State("bad", "Look", f"/files/{failed.id}")
    if plan is not None and plan.state == "failed":
        return State("bad", "Look", f"/projects/{plan.project_id}/clean#clean-fixes")
    if unsure := next((file for file in files if not file.is_mapping_confirmed), None):
        return State("warn", "Look at the mapping", f"/files/{unsure.id}#mapping")
    if plan is None or not (plan.report or {}).get("rows"):
        return State("warn", "No rows yet")
    open_fixes = [card for card in fix_cards(plans.report_of(plan)) if not card.is_applied]
    if open_fixes:
        # Those that are not on by default may stay open for good: a person decides.
        words = "fixes" if any(card.default == "on" for card in open_fixes) else "decide"
        return State("", words, f"/projects/{plan.project_id}/clean#clean-fixes", len(open_fixes))
    return State("good", "Ready to train")


def is_live(files: list[SourceFile], plan: CleaningPlan | None) -> bool:
    """Whether something is still being worked on."""
    return any(file.state in LIVE for file in files) or (plan is not None and plan.state in LIVE)


def pace(work: Any, now: datetime) -> tuple[float, float] | None:
    """(rows a second since the work began, seconds left at that pace); None before it can be told."""
    if work is None or work.state != "running" or not work.done or not work.total or work.work_started_at is None:
        return None
    elapsed_s = (now - work.work_started_at).total_seconds()
    if elapsed_s < 2:
        return None
    rate = work.done / elapsed_s
    return rate, max(0.0, (work.total - work.done) / rate)


def enough(statistics: Statistics | None) -> tuple[str, str, str] | None:
    """(tone, verdict, sentence): whether this is enough to learn from. Rules of thumb, said as such."""
    if statistics is None or not statistics.rows:
        return None
    rows, words = statistics.rows, statistics.words
    if statistics.text_rows and not statistics.chat_rows:
        if words < 20_000:
            return (
                "warn",
                "Not yet.",
                f"{number(words)} words are few for learning a style. From about 50,000 on it shows.",
            )
        return "good", "Yes.", f"{number(words)} words of plain text are enough to pick up a style; more helps."
    if statistics.distinct_labels > 1:
        least = min((n for _label, n in statistics.labels), default=0)
        if least < 20:
            return "warn", "Almost.", f"The rarest label has {number(least)} rows. Aim at 50 or more of each."
        return (
            "good",
            "Yes.",
            f"{number(rows)} rows over {number(statistics.distinct_labels)} labels, at least {number(least)} of each.",
        )
    if rows < 50:
        return "warn", "Not yet.", f"{number(rows)} rows are few. From about 50 good ones on a model changes its ways."
    if rows < 500:
        return (
            "good",
            "For a start.",
            f"{number(rows)} rows can teach tone and form. Several hundred more would help most.",
        )
    return "good", "Yes.", f"{number(rows)} rows and {number(words)} words are a good base for a small model."


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """A frozen plan in words: files and steps."""
    files = ", ".join(file.filename for file in plan.files)
    steps = ", ".join(STEPS[step.name].title.lower() for step in plan.steps) or "none"
    return [("Files", files), ("Cleaning", steps)]
