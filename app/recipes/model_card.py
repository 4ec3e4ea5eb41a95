"""What a model's card says of itself in its head (YAML between two lines of dashes): licence and languages."""

import re
from pathlib import Path
from typing import Any

import yaml

_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_CODE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}")
_LONGEST, _MOST = 16_000, 200


def licence(card: Path) -> str:
    """The licence that the card names; empty where it names none."""
    named = _head(card).get("license", "")
    return named if isinstance(named, str) and re.fullmatch(r"[\w.-]{1,100}", named) else ""


def languages(card: Path) -> list[str]:
    """Codes of the languages that the card states, as written there; empty where it states none."""
    stated = _head(card).get("language") or []
    codes = stated if isinstance(stated, list) else [stated]
    # YAML reads the code of Norwegian as the word no.
    codes = ["no" if code is False else code for code in codes]
    return [code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)][:_MOST]


def _head(card: Path) -> dict[str, Any]:
    """The card's head; empty without one, or with one that is no YAML mapping."""
    if not card.is_file():
        return {}
    with card.open(encoding="utf-8", errors="replace") as stream:
        found = _HEAD.match(stream.read(_LONGEST))
    # References between parts of a document can make a few lines as large as the memory; no card needs them.
    if found is None or re.search(r"(?:^|[\s\[{,])[&*]\w", found[1]):
        return {}
    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
