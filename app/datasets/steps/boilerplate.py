"""Lines at the edge of many rows: headers, footers, signatures, page numbers. Found once, then named in the plan.

The lines to take out are parameters of the step, so a person sees each one before it goes, and the same plan always
gives the same rows. Page numbers and dates differ from page to page, so digits are compared as `#`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.contract import Changes, RowRunner, Step, Words
from app.datasets.steps.rewriting import Rewritten, each, matching, rewriting

_DIGITS = re.compile(r"\d+")
_LETTERS = re.compile(r"[^\W\d_]")
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_UNDER_HEADS = re.compile(r"\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?)?")
LONGEST_LINE = 200
EDGE_LINES = 6


class BoilerplateParams(Contract):
    """Lines that are taken out where they stand first or last in a text."""

    lines: list[str] = Field(
        default_factory=list,
        max_length=200,
        title="Lines to take out",
        description="numbers may differ: write # for them",
    )


class Repeated(NamedTuple):
    """A line with `#` for numbers, and the number of rows it stands at the edge of."""

    line: str
    rows: int


def pattern_of(line: str) -> str:
    """A line as it is compared: blanks as one, numbers as `#`, no case."""
    return _DIGITS.sub("#", " ".join(line.split())).casefold()


def _edges(text: str) -> set[str]:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 3:
        return set()
    built = _built(lines) if "|" in text or "``" in text or "~~" in text else set()
    places = range(len(lines))
    edges = [*places[:EDGE_LINES], *places[-EDGE_LINES:]] if len(lines) > 2 * EDGE_LINES else places
    return {pattern_of(lines[i]) for i in edges if len(lines[i]) <= LONGEST_LINE and i not in built}


def _built(lines: Sequence[str]) -> set[int]:
    """Places of lines that belong to a table or a block of code: alike in many answers, and no header of a page."""
    found: set[int] = set()
    fence, is_table = "", False
    for i, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark.group(1)
        elif mark and mark.group(1).startswith(fence):
            fence = ""
        elif not fence:
            if i and "|" in lines[i - 1] and _UNDER_HEADS.fullmatch(line.strip()):
                found.add(i - 1)
                is_table = True
            is_table = is_table and "|" in line
            if not is_table:
                continue
        found.add(i)
    return found


def repeated(texts: Iterable[str], least_rows: int = 5, least_share: float = 0.02) -> list[Repeated]:
    """Lines at the edge of at least so many of the texts with three lines and more, most frequent first."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        edges = _edges(text)
        total += bool(edges)
        counts.update(edges)
    least = max(least_rows, least_share * total)
    found = [Repeated(line, n) for line, n in counts.items() if n >= least and _says_something(line)]
    return sorted(found, key=lambda r: (-r.rows, r.line))


def _says_something(line: str) -> bool:
    """Words, or a page number: not a bracket, a bullet or a rule, which belong to code and tables."""
    return len(_LETTERS.findall(line)) >= 4 or bool(re.fullmatch(r"[-–— ]*#(?: ?[/|] ?#)?[-–— ]*", line))


def stripped(text: str, patterns: frozenset[str]) -> str:
    """The text without such lines at its edges, as long as a line is left."""
    lines = text.split("\n")
    first, last = 0, len(lines)
    while first < last and (not lines[first].strip() or pattern_of(lines[first]) in patterns):
        first += 1
    while last > first and (not lines[last - 1].strip() or pattern_of(lines[last - 1]) in patterns):
        last -= 1
    taken = [line for line in (*lines[:first], *lines[last:]) if line.strip()]
    return "\n".join(lines[first:last]) if taken and first < last else text


def patterns_of(lines: Sequence[str]) -> frozenset[str]:
    """The parameter as patterns."""
    return frozenset(pattern_of(line) for line in lines if line.strip())


def _boilerplate(params: BoilerplateParams) -> RowRunner:
    patterns = patterns_of(params.lines)
    # The longest run of plain letters of each line: no regex is made of what a person wrote.
    words = sorted({max(re.findall(r"[^\W\d_]+", p) or [""], key=len) for p in patterns})

    def once(text: str) -> Rewritten:
        return stripped(text, patterns), ("fix.boilerplate",)

    if not patterns:
        return lambda batch: Changes()
    gate = "\n" if "" in words else "(?i)" + "|".join(map(re.escape, words))
    return rewriting(matching(gate), each(once))


BOILERPLATE = Step(
    "boilerplate", 1, "Repeated headers, footers, signatures", BoilerplateParams, _boilerplate, 1024,
    codes={"fix.boilerplate": "Repeated line taken out"},
    words=Words(
        "1 row begins or ends with a repeated line", "%(n)s rows begin or end with a repeated line",
        "Headers, footers and signatures are learned more often than anything else.", "Take them out", "copy",
    ),
    default="ask",
)  # fmt: skip
