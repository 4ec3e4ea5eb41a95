"""What was wrong with a request's body, as one field's name and one sentence; what was sent is never repeated."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_OTHERS = {
    "missing": "This is needed.",
    "string_too_short": "This must not be empty.",
    "finite_number": "This must be a finite number.",
    "int_parsing_size": "This number is too large.",
    "string_unicode": "The text holds half a surrogate pair, which no model can read.",
}
_BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
# What pydantic puts into an error's place for its own types.
_TYPES = {"str", "int", "float", "bool", "list", "dict"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")


def told(error: ValidationError) -> tuple[str, str]:
    """The name of the first wrong field, and a sentence about it."""
    found = error.errors(include_url=False, include_input=False)
    first = _param(found[0])
    of_field = [one for one in found if f"{_param(one)}.".startswith(f"{first}.")]
    # What is wrong with a value of the right kind says more than the names of all kinds.
    closer = [one for one in of_field if one["type"] not in _KINDS and one["type"] != "literal_error"]
    # Of a field of several kinds the place that lies deepest: a list with one wrong entry is surely meant to be a list.
    deepest = max(closer or of_field, key=lambda one: _param(one).count("."))
    param = _param(deepest)
    if closer:
        return param, _sentence(deepest)
    return param, f"This must be {_either([one for one in of_field if _param(one) == param])}."


def _param(one: Mapping[str, Any]) -> str:
    parts = (
        str(part) for part in one["loc"] if isinstance(part, int) or (_NAME.fullmatch(part) and part not in _TYPES)
    )
    return ".".join(parts)[:100]


def _either(same: Sequence[Mapping[str, Any]]) -> str:
    kinds: list[str] = []
    for one in same:
        expected = str(one.get("ctx", {}).get("expected", ""))
        kinds += re.findall(r"'([^']+)'", expected) if one["type"] == "literal_error" else [_KINDS[one["type"]]]
    words = list(dict.fromkeys(kind if kind in _KINDS.values() else f"“{kind}”" for kind in kinds))
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _sentence(one: Mapping[str, Any]) -> str:
    kind, context = one["type"], one.get("ctx", {})
    if kind == "value_error":
        return str(one["msg"]).removeprefix("Value error, ")
    if kind in _OTHERS:
        return _OTHERS[kind]
    for name, words in _BOUNDS.items():
        if name in context:
            return f"This must be {words.format(f'{context[name]:,}'.removesuffix('.0'))}."
    unit = "characters" if kind.startswith("string") else "entries"
    if "max_length" in context:
        return f"This has more than {context['max_length']} {unit}."
    if "min_length" in context:
        return f"This has fewer than {context['min_length']} {unit}."
    return "This value does not fit here."
