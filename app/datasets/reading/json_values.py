"""What a JSON parser loses without a word: the digits of huge whole numbers, and the first of two keys of one name.

The quick parser goes first. A cheap count then proves for nearly every value that nothing was lost; only what it cannot
prove is parsed again, slowly, with every key and every digit.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.datasets.options import ReadOptions

# What the quick parser keeps as whole numbers; beyond it they would become rounded fractions.
_LEAST, _MOST = -(2**63), 2**64 - 1
_KEY_END = re.compile(rb'(?<!\\)"[ \t\r\n]*:')
_SPACE, _AT_ONCE_BYTES = b" \t\r\n", 1 << 20
_UNPROVED = 1 << 62
NAMES_SHOWN = 5
Pairing = Callable[[list[tuple[str, Any]]], dict[str, Any]]


@dataclass(slots=True)
class Kept:
    """A value with what would have been lost: fields whose number is now text, keys that stood twice."""

    value: Any
    numbers: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)


def kept(raw: bytes, options: ReadOptions) -> Kept:
    """The value in `raw` with everything that the quick parser drops."""
    doubled: list[str] = []
    return exact(json.loads(raw, object_pairs_hook=pairing(options, doubled), parse_int=_whole), doubled)


def exact(value: Any, doubled: list[str]) -> Kept:
    """`value` with the whole numbers that no later step could hold as text."""
    numbers: list[str] = []
    return Kept(_texts(value, "", numbers), numbers, doubled)


def pairing(options: ReadOptions, doubled: list[str]) -> Pairing:
    """What makes an object of its pairs, for Python's parser; keys that came twice are written into `doubled`."""
    return lambda pairs: _paired(pairs, options, doubled)


def is_whole(raw: bytes, value: dict[str, Any]) -> bool:
    """Whether `value`, as the quick parser read it from `raw`, is proved to have lost nothing.

    The proof: no more colons than keys that were read, or no more quotes before one.
    """
    keys = _keys(value)
    if raw.count(b":") == keys:
        return True
    if b"\\" in raw and b'\\\\"' in raw:
        return False  # whether the quote ends a text takes a real parser
    if len(raw) > _AT_ONCE_BYTES:
        return sum(1 for _ in _KEY_END.finditer(raw)) == keys
    ends = 0
    for before in raw.split(b":")[:-1]:
        if before[-1:] in _SPACE:
            before = before.rstrip(_SPACE)
        ends += before[-1:] == b'"' and before[-2:] != b'\\"'
    return ends == keys


def _keys(value: Any) -> int:
    """How many keys there are at all depths; far too many where a number may have been rounded."""
    if type(value) is dict:
        count, inner = len(value), value.values()
    else:
        count, inner = 0, value
    for one in inner:
        kind = type(one)
        if kind is dict or kind is list:
            count += _keys(one)
        elif kind is float and abs(one) >= _MOST / 2:
            count = _UNPROVED
    return count


class _Digits(str):
    """A whole number that is too long to be one."""


def _whole(digits: str) -> int | _Digits:
    if len(digits) > 20:
        return _Digits(digits)
    number = int(digits)
    return number if _LEAST <= number <= _MOST else _Digits(digits)


def _texts(value: Any, place: str, numbers: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _texts(one, f"{place}.{key}" if place else key, numbers) for key, one in value.items()}
    if isinstance(value, list):
        return [_texts(one, f"{place}[{number}]", numbers) for number, one in enumerate(value)]
    if type(value) is int and not _LEAST <= value <= _MOST:
        try:
            value = _Digits(value)
        except ValueError:  # Python spells out no number of over 4,300 digits
            value = _Digits(hex(value))
    if type(value) is _Digits:
        numbers.append(f"{place or 'value'}: {_short(value)}")
        return str(value)
    return value


def _paired(pairs: list[tuple[str, Any]], options: ReadOptions, doubled: list[str]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    first: dict[str, Any] = {}
    names = {name for name, _value in pairs}
    for name, value in pairs:
        if name not in first:
            first[name] = value
            continue
        doubled.append(name)
        if value == first[name] or options.doubled_keys != "number":
            continue
        number = 2
        while f"{name} {number}" in names:
            number += 1
        names.add(f"{name} {number}")
        first[f"{name} {number}"] = value
    return values if options.doubled_keys == "last" else first


def _short(digits: str) -> str:
    return digits if len(digits) <= 40 else f"{digits[:30]}… ({len(digits)} digits)"


def _named(names: list[str]) -> str:
    """The first few of `names`, each once, for a note."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:NAMES_SHOWN]) + (" …" if len(once) > NAMES_SHOWN else "")


def problem_notes(found: Kept, options: ReadOptions) -> list[tuple[str, str, bool]]:
    """(reason code, note, whether the row is kept) of what was found."""
    notes = []
    if found.doubled:
        notes.append(
            ("json.doubled_key", _named([f"“{name}”" for name in found.doubled]), options.doubled_keys != "skip")
        )
    if found.numbers:
        notes.append(("json.big_number", _named(found.numbers), True))
    return notes
