"""Steps that rewrite texts: broken and invisible characters, extra blanks. Code fences are left as they are.

Gates as measured on 140,714 real rows: repair only where a byte outside printable ASCII occurs; none was missed.
"""

import re
import unicodedata
from collections.abc import Callable

import ftfy
import ftfy.badness
import ftfy.fixes
import numpy as np
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.columns import column_of
from app.datasets.steps.contract import Batch, Changes, Indexes, RowRunner, Step, Words

# A text and what was done to it; a rewrite gives one for each of its texts.
Rewritten = tuple[str, tuple[str, ...]]
Rewrite = Callable[[list[str]], list[Rewritten]]
# Indexes of the texts that a rewrite may change: all others it leaves as they are.
Gate = Callable[[pl.Series], Indexes]
ROUNDS = 6


class UnicodeParams(Contract):
    """Broken accents and invisible characters."""

    is_mojibake_repaired: bool = Field(True, title="Repair broken accents", description="“CafÃ©” becomes “Café”")
    is_composed: bool = Field(True, title="One form for each letter", description="Unicode NFC: e + ´ becomes é")
    are_controls_removed: bool = Field(True, title="Remove invisible control characters")


class WhitespaceParams(Contract):
    """Runs of blanks."""

    newlines: int = Field(2, ge=1, le=5, title="Longest run of line breaks")


def matching(pattern: str) -> Gate:
    """The texts in which a pattern of Rust's regex is found."""
    return lambda texts: texts.str.contains(pattern).arg_true().to_numpy().astype(np.int64)


def each(once: Callable[[str], Rewritten]) -> Rewrite:
    """A rewrite that looks at one text at a time."""
    return lambda texts: [once(text) for text in texts]


def rewriting(gate: Gate, rewrite: Rewrite) -> RowRunner:
    """A runner that rewrites the texts that `gate` lets through, and the label with them, so that both stay equal.

    One repair can uncover another (a control character inside a broken letter): what changed is looked at again, until
    nothing changes.
    """

    def settled(texts: pl.Series) -> tuple[list[int], list[str], list[tuple[str, ...]]]:
        """Place, new text and codes of each text that changes."""
        places = gate(texts).tolist()
        old = texts.gather(places).to_list()
        new, codes = list(old), [()] * len(old)  # type: list[str], list[tuple[str, ...]]
        open_places = list(range(len(old)))
        for _ in range(ROUNDS):
            changed = []
            results = rewrite([new[i] for i in open_places])
            for i, (text, found) in zip(open_places, results, strict=True):
                if text != new[i]:
                    new[i], codes[i] = text, codes[i] + found
                    changed.append(i)
            if not changed:
                break
            open_places = [changed[i] for i in gate(column_of([new[i] for i in changed])).tolist()]
        kept = [i for i, text in enumerate(new) if text != old[i]]
        return [places[i] for i in kept], [new[i] for i in kept], [codes[i] for i in kept]

    def run(batch: Batch) -> Changes:
        changes = Changes()
        indexes, texts, found = settled(batch.texts)
        codes: dict[str, list[int]] = {}
        for row, names in zip(batch.owners[indexes].tolist(), found, strict=True):
            for code in names:
                codes.setdefault(code, []).append(row)
        changes.texts, changes.labels = (indexes, texts), settled(batch.labels)[:2]
        changes.codes = {code: np.unique(rows) for code, rows in codes.items()}
        return changes

    return run


_PLAIN = re.compile(r"[\n\r\t\x20-\x7e]*\Z")
# Control characters, lone surrogates, the byte order mark and the marks that turn the direction of text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\u202a-\u202e\u2066-\u2069]")
_OTHER = matching(r"[^\n\r\t\x20-\x7e]")
# Longer ones are cut, as ftfy does: its time grows with the square of a line.
_LINES = re.compile(r"[^\n]{0,999999}\n|[^\n]{1,1000000}")
# What ftfy decides of a letter depends on a few characters beside it, and on no plain ones farther away: of a long
# plain stretch only both ends are shown to it, and a sign between them that says where the rest was.
_BESIDE, _SEAM = 24, "\x02"
_STRETCH = re.compile(rf"[\n\x20-\x7e]{{{4 * _BESIDE},}}")


def _encoding_fixed(line: str) -> str:
    """`ftfy.fix_encoding`, whose time grows with the whole line, on what matters of the line."""
    stretches = [] if _SEAM in line else [m.span() for m in _STRETCH.finditer(line)]
    if not stretches:
        return ftfy.fix_encoding(line)
    parts, left_out, place = [], [], 0
    for begin, end in stretches:
        parts.append(line[place : begin + _BESIDE])
        left_out.append(line[begin + _BESIDE : end - _BESIDE])
        place = end - _BESIDE
    short = _SEAM.join([*parts, line[place:]])
    fixed = ftfy.fix_encoding(short)
    if fixed == short:
        return line
    parts = fixed.split(_SEAM)
    if len(parts) != len(stretches) + 1:
        return ftfy.fix_encoding(line)
    return parts[0] + "".join(out + part for out, part in zip(left_out, parts[1:], strict=True))


def repaired(text: str) -> str:
    """`ftfy.fix_text` for encodings alone (no quotes, no HTML), line by line as there, without its second look at what
    the first one left as it was."""
    lines = []
    for line in _LINES.findall(text):
        while not line.isascii():
            fixed = _encoding_fixed(line)
            line = ftfy.fixes.fix_surrogates(ftfy.fixes.fix_c1_controls(fixed))
            if line == fixed:
                break
        lines.append(line)
    return "".join(lines)


def _for_rust(pattern: str) -> str:
    """A verbose pattern of Python's as one of Rust's that finds at least the same: without blanks and comments, and
    with the classes that are narrower there widened."""
    found, is_class, place = [], False, 0
    while place < len(pattern):
        part = pattern[place : place + 2] if pattern[place] == "\\" else pattern[place]
        place += len(part)
        if is_class:
            is_class = part != "]"
            found.append(part)
        elif part == "#":
            place = pattern.find("\n", place) + 1 or len(pattern)
        elif not part.isspace():
            is_class = part == "["
            found.append({"^": "", r"\w": r"[\w\p{N}]", r"\s": r"[\s\x1c-\x1f]"}.get(part, part))
    return "".join(found)


# ftfy repairs nothing but what this finds (and lone surrogates, which no batch can hold).
MOJIBAKE = _for_rust(ftfy.badness.BADNESS_RE.pattern)


def _doubtful(params: UnicodeParams) -> Gate:
    """The texts that the step may change: told apart in Rust, where the repair itself would take ten times as long."""
    patterns = [MOJIBAKE] if params.is_mojibake_repaired else []
    patterns += [r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{feff}\x{202a}-\x{202e}\x{2066}-\x{2069}\r]"]

    def gate(texts: pl.Series) -> Indexes:
        others = _OTHER(texts)
        some = texts.gather(others)
        is_in = some.str.contains("|".join(patterns)).to_numpy().copy()
        if params.is_composed:
            rest = np.flatnonzero(~is_in)
            is_in[rest] = [not unicodedata.is_normalized("NFC", text) for text in some.gather(rest).to_list()]
        return others[is_in]

    return gate


def _unicode(params: UnicodeParams) -> RowRunner:
    def once(text: str, is_doubtful: bool) -> Rewritten:
        if _PLAIN.match(text):
            return text, ()
        codes = []
        if is_doubtful:
            fixed = repaired(text)
            if fixed != text:
                codes.append("fix.mojibake")
                text = fixed
        if params.are_controls_removed:
            fixed = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
            if fixed != text:
                codes.append("fix.control")
                text = fixed
        if params.is_composed and not unicodedata.is_normalized("NFC", text):
            codes.append("fix.nfc")
            text = unicodedata.normalize("NFC", text)
        return text, tuple(codes)

    def rewrite(texts: list[str]) -> list[Rewritten]:
        if params.is_mojibake_repaired:
            doubts = column_of(texts).str.contains(MOJIBAKE).to_list()
        else:
            doubts = [False] * len(texts)
        return [once(text, is_doubtful) for text, is_doubtful in zip(texts, doubts, strict=True)]

    return rewriting(_doubtful(params), rewrite)


_FENCE = re.compile(r"(^[ \t]*(?:```|~~~).*?(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z))", re.DOTALL | re.MULTILINE)
_TRAILING = re.compile(r"[^\S\n]+(?=\n|\Z)")
_RUNS = re.compile(r"(?<=\S)[^\S\n]{2,}")
_BLANKS = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_BLANK_LINES = re.compile(r"\A\s*\n")
_INDENTED = re.compile(r"[ \t]+\S.*\n[ \t]+")


def _whitespace(params: WhitespaceParams) -> RowRunner:
    many = re.compile(rf"\n{{{params.newlines + 1},}}")

    def outside(text: str) -> str:
        text = _BLANKS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
        return many.sub("\n" * params.newlines, _RUNS.sub(" ", _TRAILING.sub("", text)))

    def once(text: str) -> Rewritten:
        if "```" in text or "~~~" in text:
            parts = _FENCE.split(text)
            fixed = "".join(part if index % 2 else outside(part) for index, part in enumerate(parts))
        else:
            fixed = outside(text)
        # A leading indent belongs to code; blank lines before it do not.
        fixed = _BLANK_LINES.sub("", fixed).rstrip()
        if not _INDENTED.match(fixed):
            fixed = fixed.lstrip()
        return fixed, ("fix.space",) if fixed != text else ()

    # Python's \s also means the four separators 1C to 1F.
    gate = rf"  |[\s\x1c-\x1f&&[^\n ]]| \n|\n{{{params.newlines + 1}}}|\A[\s\x1c-\x1f]|[\s\x1c-\x1f]\z"
    return rewriting(matching(gate), each(once))


UNICODE = Step(
    "unicode", 1, "Broken or invisible characters", UnicodeParams, _unicode, 1,
    codes={
        "fix.mojibake": "Broken accents repaired", "fix.control": "Invisible characters removed",
        "fix.nfc": "Letters brought to one form",
    },
    words=Words(
        "1 row has broken or invisible characters", "%(n)s rows have broken or invisible characters",
        "Broken accents and invisible characters are learned like any other.", "Repair them", "wand-sparkles",
    ),
)  # fmt: skip
WHITESPACE = Step(
    "whitespace", 1, "Extra spaces and line breaks", WhitespaceParams, _whitespace, 2,
    codes={"fix.space": "Spaces tidied"},
    words=Words(
        "1 row has extra spaces", "%(n)s rows have extra spaces", "Extra blanks and line breaks, tidied outside code.",
        "Tidy them", "wand-sparkles",
    ),
)  # fmt: skip
