"""What the Clean pages show: the waterfall of steps, rows before and after with what changed. No session here."""

import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from app.core.numbers import number
from app.datasets.findings import REASONS
from app.datasets.reports import PrepareReport, Shown, StepReport
from app.datasets.steps.catalogue import CODES, STEPS
from app.datasets.steps.contract import ChosenStep
from app.datasets.steps.personal import KINDS, NAMES
from app.datasets.steps.profanity import Lexicon, ProfanityParams

_MEASURED = Path(__file__).parent / "steps" / "personal_measured.json"


class Fall(NamedTuple):
    """One line of the waterfall. `share` of all rows is left after it; `made`: more rows, because some were split."""

    name: str
    title: str
    mode: str
    changed: int
    removed: int
    marked: int
    left: int
    share: float
    made: int = 0


def waterfall(report: PrepareReport | None, chosen: list[ChosenStep]) -> list[Fall]:
    """From the rows that came in to those that are left, step by step."""
    if report is None or not report.rows_in:
        return []
    modes = {step.name: step.mode for step in chosen}
    left = report.rows_in - report.unmapped
    falls = (
        [Fall("", "", "map", 0, report.unmapped, 0, left, left / (report.rows_in + report.made))]
        if report.unmapped
        else []
    )
    for step in report.steps:
        if step.is_applied:
            left += step.made - step.removed
            falls.append(
                Fall(
                    step.name, STEPS[step.name].title, modes.get(step.name, "on"), step.changed, step.removed,
                    step.marked, left, left / (report.rows_in + report.made), step.made,
                )
            )  # fmt: skip
    by_hand = left - report.rows
    if by_hand > 0:
        falls.append(Fall("", "", "hand", 0, by_hand, 0, report.rows, report.rows / (report.rows_in + report.made)))
    return falls


_BY_HAND = {
    "hand.edited": "Changed by hand", "hand.deleted": "Deleted by hand", "hand.excluded": "Kept out by hand",
    "hand.kept": "Kept whatever a step says",
}  # fmt: skip


def code_words(code: str) -> str:
    """What a code of a step, of the mapping or of a change by hand says to a person."""
    if code in REASONS:
        return REASONS[code].title
    return _BY_HAND.get(code) or CODES.get(code, code)


class Reason(NamedTuple):
    """A reason with the number of rows it holds for; `rows` is of the whole set, `drawn` of the rows shown."""

    code: str
    words: str
    rows: int
    drawn: int


def reasons(found: StepReport | None) -> list[Reason]:
    """The reasons of a step, the most frequent first."""
    if found is None:
        return []
    drawn = [row.code for row in found.examples]
    made = [Reason(code, CODES.get(code, code), n, drawn.count(code)) for code, n in found.codes.items()]
    return sorted(made, key=lambda reason: (-reason.rows, reason.code))


def estimate(found: StepReport | None) -> str:
    """What the numbers of a step not applied rest on; empty when every row was looked at."""
    if found is None or found.is_applied:
        return ""
    if not found.is_known:
        sentence = "Only the whole set can tell how many rows this step takes. Apply it to see; it can be undone."
        if found.examples:
            sentence += f" These were found among the first {number(found.sampled)} rows."
        return sentence
    if not found.sampled:
        return ""
    return (
        f"An estimate from {number(found.sampled)} rows drawn at random:"
        f" between {number(found.low)} and {number(found.high)} rows."
    )


def measured() -> list[dict[str, Any]]:
    """Kind, title, share of made items found, decoys hit: as measured by `benchmarks/data/personal_measure.py`."""
    stored = _stored()
    return [
        {
            "title": KINDS[kind].title,
            "found": figures["found"], "made": figures["items"],
            "share": figures["found"] / figures["items"],
            "decoys_hit": figures["decoys_hit"], "decoys": stored["decoys"],
        }
        for kind, figures in [(kind, stored["kinds"][kind]) for kind in PERSONAL_ORDER]
    ]  # fmt: skip


PERSONAL_ORDER = ("email", "phone", "card", "iban", "ssn", "ip", "key", "private_key", "url")


@lru_cache(maxsize=1)
def _stored() -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(_MEASURED.read_bytes())
    return found


class Piece(NamedTuple):
    """A piece of a text: kind "" (plain), invisible, veiled, name or profane."""

    kind: str
    text: str


class Part(NamedTuple):
    """A stretch of a diff: whether it is the same on both sides, and its pieces before and after."""

    is_same: bool
    before: list[Piece]
    after: list[Piece]


class Pair(NamedTuple):
    """A row as shown: what differs (empty where nothing was rewritten), or its text in pieces. `beside`: a row that
    goes against the twin that stays, empty where there is none."""

    row: Shown
    parts: list[Part]
    whole: list[Piece]
    beside: list[Part]


# One sign is a word where there are no blanks between words.
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_DENSE}]|(?:(?![{_DENSE}])\w)+|\s+|[^\w\s]")
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\ufeff\ufff9-\uffff]"
)
_NAME = "|".join(sorted(NAMES.values()))
_SPECIAL = re.compile(
    rf"(?P<invisible>{_INVISIBLE.pattern})|(?P<veiled>\S*•\S*(?:[ -]\S*•\S*)*)"
    rf"|(?P<name><(?:{_NAME})_\w{{1,12}}>|\[(?:{_NAME})\])"
)


def pieces(text: str, lexicon: Lexicon | None = None) -> list[Piece]:
    """The text cut where something is to be seen: invisible characters by their number, veiled and replaced values."""
    found: list[Piece] = []
    marks: list[tuple[int, int, str]] = [
        (m.start(), m.end(), m.lastgroup or "") for m in _SPECIAL.finditer(text)
    ]  # fmt: skip
    if lexicon is not None:
        marks += [(hit.start, hit.end, "profane") for hit in lexicon.hits([text]).get(0, [])]
    place = 0
    for start, end, kind in sorted(marks):
        if start < place:
            continue
        if start > place:
            found.append(Piece("", text[place:start]))
        shown = f"U+{ord(text[start]):04X}" if kind == "invisible" else text[start:end]
        found.append(Piece(kind, shown))
        place = end
    if place < len(text):
        found.append(Piece("", text[place:]))
    return found


def parts_of(before: str, after: str) -> list[Part]:
    """The stretches of a diff by words, by single signs in scripts without blanks."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [
        Part(kind == "equal", pieces("".join(old[a:b])), pieces("".join(new[c:d])))
        for kind, a, b, c, d in matcher.get_opcodes()
    ]


def pairs(found: StepReport | None, code: str, chosen: ChosenStep | None) -> list[Pair]:
    """The drawn rows of a step, all or those of one reason."""
    if found is None:
        return []
    lexicon = _lexicon(chosen) if found.name == "profanity" else None
    rows = [row for row in found.examples if not code or row.code == code]
    return [
        Pair(
            row,
            parts_of(row.before, row.after) if row.after is not None and row.after != row.before else [],
            pieces(row.before, lexicon), parts_of(row.before, row.twin) if row.twin and row.after is None else [],
        )
        for row in rows
    ]  # fmt: skip


def _lexicon(chosen: ChosenStep | None) -> Lexicon:
    params = ProfanityParams.model_validate(chosen.params if chosen else {})
    return Lexicon(params.languages, params.allowed, params.least_severity)
