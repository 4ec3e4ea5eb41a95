"""Personal data and secrets: found by pattern and check digit, then replaced, masked, hashed, kept, or the row is out.

What was found is never stored: a span says kind and place, nothing else. Names and postal addresses are not covered.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, ValidationInfo, field_validator

from app.contracts.base import Contract
from app.datasets.steps import personal_numbers as numbers
from app.datasets.steps import personal_secrets as secrets
from app.datasets.steps.columns import column_of
from app.datasets.steps.personal_numbers import Span

Action = Literal["replace", "mask", "hash", "out", "keep"]
ACTIONS: dict[str, str] = {
    "replace": "Replace with a numbered name",
    "mask": "Replace with its kind alone",
    "hash": "Hash: alike in all rows",
    "out": "Leave the row out",
    "keep": "Keep, with a reason",
}


class Finder(NamedTuple):
    """`gate`: a Rust pattern that every text with a find of `find` has. `run`: what many gates share, see RUNS.

    In the run "words" the gate looks at long words alone, and the word must have all of the `signs`, too.
    """

    gate: str
    find: Callable[[str], Iterator[Span]]
    run: Literal["", "numbers", "long", "words"] = ""
    signs: tuple[str, ...] = ()


class Kind(NamedTuple):
    """What is looked for, by one finder or several."""

    name: str
    title: str
    finders: tuple[Finder, ...]

    def find(self, text: str) -> Iterator[Span]:
        """What all finders see in one text."""
        for finder in self.finders:
            yield from finder.find(text)


# What stands before a number is no part of a word; beyond ASCII everything counts as an edge here.
_EDGE = r"(?:\A|[^A-Za-z0-9_.-])"
_COUNTRY = "|".join(numbers.IBAN_LENGTHS)
# Where two finds overlap the earlier kind wins.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("private_key", "Private keys", (Finder(r"PRIVATE KEY", secrets.private_keys),)),
        Kind("url", "Logins in web addresses", (Finder(r"://[^\s/]*@|[?&][A-Za-z_]+=", secrets.url_logins),)),
        Kind(
            "key", "Keys and tokens",
            (
                Finder(
                    r"sk-|AKIA|ASIA|AROA|AIDA|gh[pousr]_|github_pat_|glpat-|xox|xapp-|AIza|ya29|GOCSPX|_live_|_test_"
                    r"|whsec_|hf_|npm_|pypi-|dop_v1|shp|SG\.|key-|SK[0-9a-f]{32}|sq0|eyJ|AGE-SECRET|:AA",
                    secrets.prefixed_keys, "words",
                ),
                Finder(r"hooks\.slack", secrets.hooks, "words"),
                Finder(
                    r"(?i:key|token|secret|passw|pwd|bearer|authorization)[^\n]{1,24}[A-Za-z0-9_+/=.~!@$%^&*-]{12}",
                    secrets.assigned_keys, "long",
                ),
                Finder(
                    r"[A-Za-z0-9+/_-]{24}", secrets.keys_alone, "words", ("[A-Z]", "[a-z]", "[0-9]"),
                ),
            ),
        ),
        Kind("email", "E-mail addresses", (Finder(r"@|[\[(] ?[aA][tT] ?[\])]", numbers.emails, "numbers"),)),
        Kind(
            "iban", "Bank accounts (IBAN)",
            (
                Finder(
                    rf"(?:\A|[^A-Za-z0-9])(?i:{_COUNTRY})\d{{2}}(?:[ -]?[A-Za-z0-9]){{11}}", numbers.ibans, "numbers"
                ),
            ),
        ),
        Kind("card", "Payment cards", (Finder(rf"{_EDGE}\d(?:[ -]?\d){{11}}", numbers.cards, "numbers"),)),
        Kind(
            "ssn", "US social security numbers",
            (Finder(rf"{_EDGE}\d{{3}}[ -]\d{{2}}[ -]\d{{4}}|\d{{9}}", numbers.social_numbers, "numbers"),),
        ),
        Kind(
            "ip", "IP addresses",
            (Finder(r"\d\.\d{1,3}\.\d{1,3}\.\d|:[0-9A-Fa-f]{0,4}:", numbers.addresses, "numbers"),),
        ),
        Kind(
            "phone", "Phone numbers",
            (
                Finder(
                    r"(?:\A|[^A-Za-z0-9_.+/=#-])(?:\+ ?\(?|\(\+?)?\d(?:[ ().+/-]{0,8}\d){6}", numbers.phones, "numbers"
                ),
            ),
        ),
    )
}  # fmt: skip
_LONG = r"[A-Za-z0-9_+/.=~!@$%^&*:-]{12"
# Every gate that names a run lies within it: one look at all texts stands for many.
RUNS = {
    "long": _LONG + "}",
    "numbers": "|".join(f.gate for kind in KINDS.values() for f in kind.finders if f.run == "numbers"),
}
NAMES = {"url": "LOGIN"} | {name: name.upper() for name in KINDS if name != "url"}
CODES = {f"fix.pii.{name}": f"{kind.title} replaced" for name, kind in KINDS.items()} | {
    f"q.pii.{name}": f"{kind.title} found, kept with a reason" for name, kind in KINDS.items()
}
CODES["out.pii"] = "Personal data: left out"
NOT_COVERED = "Names, postal addresses and dates of birth are not looked for."


def _action(name: str) -> Any:
    return Field("replace", title=KINDS[name].title)


class PersonalParams(Contract):
    """Personal data and secrets."""

    email: Action = _action("email")
    phone: Action = _action("phone")
    card: Action = _action("card")
    iban: Action = _action("iban")
    ssn: Action = _action("ssn")
    ip: Action = _action("ip")
    key: Action = _action("key")
    private_key: Action = _action("private_key")
    url: Action = _action("url")
    allowed: list[str] = Field(
        default_factory=list, max_length=200, title="These stay", description="public values, or domains of addresses"
    )
    salt: str = Field("", max_length=64, json_schema_extra={"is_secret": True}, title="Salt of the hash")
    reason: str = Field(
        "",
        max_length=300,
        validate_default=True,
        title="Why some are kept",
        description="needed where you chose to keep",
    )

    @field_validator("reason")
    @classmethod
    def _has_reason(cls, value: str, info: ValidationInfo) -> str:
        if not value.strip() and "keep" in [info.data.get(name) for name in KINDS]:
            raise ValueError("Say why these are kept.")
        return value

    def action(self, kind: str) -> Action:
        """What becomes of a kind."""
        action: Action = getattr(self, kind)
        return action


# Below this, asking each text costs less than asking the column.
FEW_TEXTS = 30
# The shortest finds are an address such as a@b.de and seven digits.
LEAST_BYTES = 6


def _resolved(spans: Iterable[Span]) -> list[Span]:
    """Without overlaps, in order of place: kinds named first win."""
    taken: list[Span] = []
    for span in spans:
        if all(span.end <= other.start or span.start >= other.end for other in taken):
            taken.append(span)
    return sorted(taken, key=lambda span: span.start)


def found_in(text: str, kinds: Iterable[str] = KINDS) -> list[Span]:
    """Every find of these kinds in one text, without overlaps."""
    return _resolved(span for name in KINDS if name in set(kinds) for span in KINDS[name].find(text))


class _Runs:
    """The texts that each run of gates lets through, with their places in the column."""

    def __init__(self, column: pl.Series) -> None:
        places = pl.Series(np.arange(len(column), dtype=np.uint32))
        self._found: dict[str, tuple[pl.Series, pl.Series]] = {"": (column, places)}

    def _of(self, run: str) -> tuple[pl.Series, pl.Series]:
        if run not in self._found:
            if run == "words":
                texts, places = self._of("long")
                words = texts.str.extract_all(_LONG + ",}")
                owners = np.repeat(places.to_numpy(), words.list.len().to_numpy())
                self._found[run] = words.explode(), pl.Series(owners)
            else:
                texts, places = self._found[""]
                hits = texts.str.contains(RUNS[run]).arg_true()
                self._found[run] = texts.gather(hits), hits
        return self._found[run]

    def hits(self, finder: Finder) -> pl.Series:
        """Places of the texts that a finder must look at, ascending."""
        texts, places = self._of(finder.run)
        for pattern in (finder.gate, *finder.signs):
            hits = texts.str.contains(pattern).arg_true()
            texts, places = texts.gather(hits), places.gather(hits)
        return places.unique(maintain_order=True) if finder.run == "words" else places


def found(texts: Sequence[str] | pl.Series, kinds: Iterable[str] = KINDS) -> dict[int, list[Span]]:
    """Place of a text to its finds; texts without any are not in it."""
    if len(texts) < FEW_TEXTS:
        return {place: spans for place, text in enumerate(texts) if (spans := found_in(text, kinds))}
    column, wanted = column_of(texts), set(kinds)
    if (column.str.len_bytes() < LEAST_BYTES).all():
        return {}
    finds: dict[int, list[Span]] = {}
    runs = _Runs(column)
    for name, kind in KINDS.items():
        for finder in kind.finders if name in wanted else ():
            hits = runs.hits(finder)
            gated = texts.gather(hits) if isinstance(texts, pl.Series) else [texts[place] for place in hits]
            for place, text in zip(hits.to_list(), gated, strict=True):
                if spans := list(finder.find(text)):
                    finds.setdefault(place, []).extend(spans)
    return {place: _resolved(spans) for place, spans in sorted(finds.items())}


def _value(kind: str, text: str) -> str:
    """What is the same although it is written in another way."""
    if kind in ("phone", "card", "ssn"):
        return re.sub(r"\D", "", text)
    return re.sub(r"[ -]", "", text).upper() if kind == "iban" else text.casefold() if kind == "email" else text


def is_allowed(kind: str, text: str, allowed: Iterable[str]) -> bool:
    """Whether the person said that this value stays: the value itself, or the domain of an e-mail address."""
    value = _value(kind, text)
    words = [word.strip() for word in allowed]
    return any(
        value == _value(kind, w) or (kind == "email" and value.endswith("@" + w.casefold().lstrip("@")))
        for w in words
        if w
    )


class Replacing:
    """The names of one example: the same value gets the same name in all of its texts."""

    def __init__(self, params: PersonalParams, salt: bytes, texts: Iterable[str]) -> None:
        self._params, self._salt = params, salt
        self._names: dict[tuple[str, str], str] = {}
        # Names that stand there already are not given again.
        self._last = dict.fromkeys(NAMES.values(), 0)
        for text in texts:
            for name, number in re.findall(r"<([A-Z_]{2,12})_(\d{1,6})>", text):
                if name in self._last:
                    self._last[name] = max(self._last[name], int(number))
        self.codes: dict[str, int] = {}
        self.is_out = False

    def _name(self, kind: str, text: str) -> str:
        action, name = self._params.action(kind), NAMES[kind]
        if action == "mask":
            return f"[{name}]"
        value = _value(kind, text)
        if action == "hash":
            digest = hashlib.blake2b(f"{kind}:{value}".encode("utf-8", "surrogatepass"), key=self._salt, digest_size=5)
            return f"<{name}_{digest.hexdigest()}>"
        if (kind, value) not in self._names:
            self._last[name] += 1
            self._names[kind, value] = f"<{name}_{self._last[name]}>"
        return self._names[kind, value]

    def rewrite(self, text: str, spans: Sequence[Span]) -> str:
        """The text without its finds; `codes` and `is_out` say what was done."""
        parts, place = [], 0
        for span in spans:
            value = text[span.start : span.end]
            if is_allowed(span.kind, value, self._params.allowed):
                continue
            action = self._params.action(span.kind)
            code = f"q.pii.{span.kind}" if action == "keep" else f"fix.pii.{span.kind}"
            self.codes[code] = self.codes.get(code, 0) + 1
            self.is_out |= action == "out"
            if action in ("replace", "mask", "hash"):
                parts += [text[place : span.start], self._name(span.kind, value)]
                place = span.end
        return "".join([*parts, text[place:]])


def veiled(text: str, spans: Sequence[Span]) -> str:
    """The text with every find made unreadable, its length and signs kept: no screen needs the value."""
    parts, place = [], 0
    for span in spans:
        parts += [text[place : span.start], veil(span.kind, text[span.start : span.end])]
        place = span.end
    return "".join([*parts, text[place:]])


def veiled_text(text: str) -> str:
    """The text with everything personal that is found in it made unreadable."""
    return veiled(text, found([text]).get(0, ()))


def veiled_texts(texts: Sequence[str]) -> list[str]:
    """`veiled_text` of each."""
    finds = found(texts)
    return [veiled(text, finds[place]) if place in finds else text for place, text in enumerate(texts)]


def veil(kind: str, value: str) -> str:
    """One value made unreadable: letters and digits as dots, but for the first (keys: the first four)."""
    shown = {"key": 4, "private_key": 10, "url": 0, "card": 0, "ssn": 0, "iban": 2}.get(kind, 1)
    return value[:shown] + re.sub(r"\w", "•", value[shown:])
