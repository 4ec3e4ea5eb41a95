"""Cleaning steps: pure and versioned, each with its parameters, a changed mask and a reason code for every row out.

An example is a dict with kind, messages, text, label and meta, as `mapping.apply` makes it. Steps never change the
example they are given. Default values and gates follow the measurements on 140,714 real rows: repair only where a
byte outside printable ASCII occurs (none missed), never inside code fences.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ftfy
import xxhash
from pydantic import Field

from app.contracts.base import Contract

Example = dict[str, Any]


class Outcome(NamedTuple):
    """What a step did with one example: its new form, or None with the code why. `of`: the kept twin's rid."""

    example: Example | None
    codes: tuple[str, ...] = ()
    of: int | None = None


Runner = Callable[[int, Example], Outcome]


class UnicodeParams(Contract):
    """Broken accents and invisible characters."""

    is_mojibake_repaired: bool = Field(True, title="Repair broken accents", description="“CafÃ©” becomes “Café”")
    is_composed: bool = Field(True, title="One form for each letter", description="Unicode NFC: e + ´ becomes é")
    are_controls_removed: bool = Field(True, title="Remove invisible control characters")


class WhitespaceParams(Contract):
    """Runs of blanks."""

    newlines: int = Field(2, ge=1, le=5, title="Longest run of line breaks")


class MissingParams(Contract):
    """Rows whose question or answer is missing."""

    placeholders: list[str] = Field(
        default_factory=lambda: ["n/a", "na", "null", "none", "nan", "-", "--", "...", "?", "tbd"],
        max_length=50,
        title="Words that mean “nothing”",
    )


class DuplicateParams(Contract):
    """Copies of a whole row: the first one stays."""

    is_folded: bool = Field(False, title="Ignore capitals and punctuation")


class LengthParams(Contract):
    """Answers or texts outside these lengths, in characters."""

    shortest: int = Field(1, ge=0, le=100_000, title="Shortest answer", description="characters")
    longest: int = Field(
        20_000, ge=1, le=10_000_000, title="Longest row", description="characters, question and answer"
    )


class Step(NamedTuple):
    """A step of the catalogue. `start` makes a runner, which sees every example once, in order."""

    name: str
    version: int
    title: str
    params: type[Contract]
    start: Callable[[Any], Runner]
    bit: int


def texts_of(example: Example) -> list[str]:
    """Every text of the example, in order."""
    return [m["content"] for m in all_turns(example)] if example["kind"] == "chat" else [example["text"]]


def all_turns(example: Example) -> list[dict[str, Any]]:
    """The turns of the conversation, then those that were chosen and rejected where answers were compared."""
    return [m for key in ("messages", "chosen", "rejected") for m in example.get(key) or ()]


def with_texts(example: Example, texts: list[str]) -> Example:
    """A copy of the example with other texts."""
    if example["kind"] == "text":
        return {**example, "text": texts[0]}
    turns = iter([{**m, "content": text} for m, text in zip(all_turns(example), texts, strict=True)])
    return {**example, **{k: [next(turns) for _ in example.get(k) or ()] for k in ("messages", "chosen", "rejected")}}


def _rewriting(once: Callable[[str], tuple[str, tuple[str, ...]]]) -> Runner:
    """A runner that rewrites each text, and the label with it, so that both stay equal.

    One repair can uncover another (a control character inside a broken letter): it goes on until nothing changes.
    """

    def rewrite(text: str) -> tuple[str, tuple[str, ...]]:
        found: tuple[str, ...] = ()
        for _ in range(6):
            before = text
            text, codes = once(before)
            found += codes
            if text == before:
                break
        return text, found

    def run(_rid: int, example: Example) -> Outcome:
        old = texts_of(example)
        results = [rewrite(text) for text in old]
        new = [text for text, _codes in results]
        label = rewrite(example["label"])[0] if example["label"] else ""
        if new == old and label == example["label"]:
            return Outcome(example)
        codes = tuple(dict.fromkeys(code for _text, found in results for code in found))
        return Outcome({**with_texts(example, new), "label": label}, codes)

    return run


_PLAIN = re.compile(r"[\n\r\t\x20-\x7e]*\Z")
# Control characters, lone surrogates, the byte order mark and the marks that turn the direction of text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\u202a-\u202e\u2066-\u2069]")
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False,
    remove_terminal_escapes=False, fix_line_breaks=False, remove_control_chars=False, fix_surrogates=True,
    normalization=None, explain=False,
)  # fmt: skip


def _unicode(params: UnicodeParams) -> Runner:
    def rewrite(text: str) -> tuple[str, tuple[str, ...]]:
        if _PLAIN.match(text):
            return text, ()
        codes = []
        if params.is_mojibake_repaired:
            fixed = ftfy.fix_text(text, _FTFY)
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

    return _rewriting(rewrite)


_FENCE = re.compile(r"(^[ \t]*(?:```|~~~).*?(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z))", re.DOTALL | re.MULTILINE)
_GATE = re.compile(r"  |[^\S\n ]|\s\n|\n\n\n|\A\s|\s\Z")
_TRAILING = re.compile(r"[^\S\n]+(?=\n|\Z)")
_RUNS = re.compile(r"(?<=\S)[^\S\n]{2,}")


def _whitespace(params: WhitespaceParams) -> Runner:
    many = re.compile(rf"\n{{{params.newlines + 1},}}")

    def outside(text: str) -> str:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = re.sub(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]", " ", text)
        return many.sub("\n" * params.newlines, _RUNS.sub(" ", _TRAILING.sub("", text)))

    def once(text: str) -> str:
        parts = _FENCE.split(text)
        fixed = "".join(part if index % 2 else outside(part) for index, part in enumerate(parts))
        # A leading indent belongs to code; blank lines before it do not.
        fixed = re.sub(r"\A\s*\n", "", fixed).rstrip()
        if not re.match(r"[ \t]+\S.*\n[ \t]+", fixed):
            fixed = fixed.lstrip()
        return fixed

    def rewrite(text: str) -> tuple[str, tuple[str, ...]]:
        if not _GATE.search(text):
            return text, ()
        fixed = once(text)
        return fixed, ("fix.space",) if fixed != text else ()

    return _rewriting(rewrite)


_INVISIBLE = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")


def _missing(params: MissingParams) -> Runner:
    placeholders = {p.strip().casefold() for p in params.placeholders}

    def is_missing(text: str) -> bool:
        shown = _INVISIBLE.sub(" ", text).strip()
        return not shown or shown.casefold() in placeholders

    def run(_rid: int, example: Example) -> Outcome:
        if example["kind"] == "text":
            is_out = is_missing(example["text"])
        else:
            turns = [m for m in example["messages"] if m["role"] != "system"]
            answers = [m for m in turns if m["role"] == "assistant" and m["train"]]
            asked = [m for m in turns if m["role"] in ("user", "tool")]
            is_label = bool(example["label"]) and len(answers) == 1 and answers[0]["content"] == example["label"]
            is_out = (
                not (answers or example.get("rejected"))
                or any(
                    (not _INVISIBLE.sub("", m["content"])) if is_label else is_missing(m["content"]) for m in answers
                )
                or all(not _INVISIBLE.sub("", m["content"]) for m in asked)
            )
        return Outcome(None, ("out.missing",)) if is_out else Outcome(example)

    return run


_WORDLESS = re.compile(r"[\W_]+")


def content_key(example: Example, is_folded: bool = False) -> int:
    """64-bit xxh3 of what is learned and read: turns with their roles, or the text."""
    parts = []
    if example["kind"] == "chat":
        for message in all_turns(example):
            parts += [message["role"], _fold(message["content"]) if is_folded else message["content"]]
    else:
        parts = ["text", _fold(example["text"]) if is_folded else example["text"]]
    return xxhash.xxh3_64_intdigest("\x1f".join(parts).encode("utf-8", "surrogatepass"))


def _fold(text: str) -> str:
    return _WORDLESS.sub(" ", text.casefold()).strip() or text


def _exact(params: DuplicateParams) -> Runner:
    kept: dict[int, int] = {}

    def run(rid: int, example: Example) -> Outcome:
        key = content_key(example, params.is_folded)
        of = kept.setdefault(key, rid)
        return Outcome(example) if of == rid else Outcome(None, ("out.exact",), of)

    return run


def _length(params: LengthParams) -> Runner:
    def run(_rid: int, example: Example) -> Outcome:
        texts = texts_of(example)
        answer = (
            example["text"]
            if example["kind"] == "text"
            else next((m["content"] for m in reversed(example["messages"]) if m["role"] == "assistant"), "")
        )
        if len(answer) < params.shortest:
            return Outcome(None, ("out.short",))
        if sum(map(len, texts)) > params.longest:
            return Outcome(None, ("out.long",))
        return Outcome(example)

    return run


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("unicode", 1, "Broken or invisible characters", UnicodeParams, _unicode, 1),
        Step("whitespace", 1, "Extra spaces and line breaks", WhitespaceParams, _whitespace, 2),
        Step("missing", 1, "Rows without a question or an answer", MissingParams, _missing, 4),
        Step("exact", 1, "Exact copies", DuplicateParams, _exact, 8),
        Step("length", 1, "Too short or too long", LengthParams, _length, 16),
    )
}

CODES = {
    "fix.mojibake": "Broken accents repaired",
    "fix.control": "Invisible characters removed",
    "fix.nfc": "Letters brought to one form",
    "fix.space": "Spaces tidied",
    "out.missing": "Question or answer missing",
    "out.exact": "Copy of another row",
    "out.short": "Answer too short",
    "out.long": "Row too long",
}


class ChosenStep(Contract):
    """A step of a plan, with its parameters. The version says which rules it was written for."""

    name: str = Field(max_length=40)
    version: int = 1
    params: dict[str, Any] = Field(default_factory=dict)


def start(chosen: ChosenStep) -> Runner:
    """The runner of a chosen step. Raises KeyError for an unknown name, ValueError for another version."""
    step = STEPS[chosen.name]
    if chosen.version != step.version:
        raise ValueError(f"step {chosen.name}@{chosen.version} is not known here (this is @{step.version})")
    return step.start(step.params.model_validate(chosen.params))


def in_order(steps: Iterable[ChosenStep]) -> list[ChosenStep]:
    """The steps in the order of the catalogue, each name once (the last one given)."""
    by_name = {step.name: step for step in steps}
    return [by_name[name] for name in STEPS if name in by_name]
