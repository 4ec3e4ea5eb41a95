"""A recipe file as a person wrote it: every value by the field it is for, all refusals at once, each with its line."""

from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from app.contracts.recipe import RecipeSpec

_NULL = "tag:yaml.org,2002:null"
MOST_TOLD = 12
# What pydantic found, in the words of a person who writes the file. Braces: the problem's own context.
_WORDS = {
    "literal_error": "must be {expected}",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "string_type": "must be a text",
    "list_type": "must be a list, each entry on a line of its own that begins with “- ”",
    "model_type": "must hold names and values, on the lines below it and moved in by two spaces",
    "greater_than_equal": "must be at least {ge:,}",
    "greater_than": "must be more than {gt:,}",
    "less_than_equal": "must be at most {le:,}",
    "less_than": "must be less than {lt:,}",
    "string_pattern_mismatch": "must be letters, digits and hyphens",
    "too_long": "may have at most {max_length:,} entries",
    "string_too_long": "may have at most {max_length:,} characters",
}


class BadRecipeFile(ValueError):
    """The file is no recipe. The text has a line for each thing that does not fit, with its line and name."""


class _Loader(yaml.SafeLoader):
    """YAML whose plain words stay words: `yes` is no number, `1:30` no 90. The fields say what they mean."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag == _NULL]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> RecipeSpec:
    """The recipe of a YAML or JSON text. Raises BadRecipeFile for everything that does not fit."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        values = loader.construct_document(root) if root is not None else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # ValueError: a value tagged as a number or date that it is not.
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f" in line {line + 1}" if line is not None else ""
        raise BadRecipeFile(
            f"The file cannot be read{place}: it is not valid YAML. Write “name: value” on each line, and begin lines"
            " that belong together with the same number of spaces."
        ) from None
    finally:
        loader.dispose()
    if not isinstance(root, yaml.MappingNode):
        raise BadRecipeFile("The file holds no recipe. It must be a list of names and values.")
    found = _twins(root)
    try:
        spec = RecipeSpec.model_validate(values)
    except ValidationError as error:
        problems: list[Any] = error.errors(include_url=False, include_input=False)
        found += [_explained(root, problem) for problem in problems]
    if not found:
        return spec
    told = [sentence for _, sentence in sorted(found, key=lambda one: one[0])]
    more = [f"… and {len(told) - MOST_TOLD} more like these."] if len(told) > MOST_TOLD else []
    raise BadRecipeFile("\n".join(told[:MOST_TOLD] + more))


def _twins(root: yaml.MappingNode) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in (root, *(value for _, value in root.value if isinstance(value, yaml.MappingNode))):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in seen:
                found.append((line, f"Line {line}: “{name}” stands in line {seen[name]} already. Keep one."))
            seen.setdefault(name, line)
    return found


def _explained(root: yaml.Node, problem: Any) -> tuple[int, str]:
    """One problem of pydantic's as (line, sentence), without echoing values that were sent."""
    name = ".".join(str(part) for part in problem["loc"])
    line = _line(root, problem["loc"])
    place = f"Line {line}, " if line else ""
    if problem["type"] == "extra_forbidden":
        return line or 0, f"{place}“{name}” is not a value of a recipe.{_meant(problem['loc'])}"
    if problem["type"] == "missing":
        return 0, f"“{name}” is missing. Add a line “{name}: …”{_choices(problem['loc'])}."
    context = {"expected": "", **problem.get("ctx", {})}
    context |= {key: int(value) for key, value in context.items() if isinstance(value, float) and value.is_integer()}
    message = str(problem["msg"]).removeprefix("Value error, ")
    if words := _WORDS.get(problem["type"]):
        message = words.format(**(context | {"expected": str(context["expected"]).replace("'", "")}))
        return line or 0, f"{place}“{name}” {message}."
    return line or 0, f"{place}{name}: {message}." if name else f"{message[:1].upper()}{message[1:]}."


def _fields(loc: tuple[Any, ...]) -> dict[str, Any]:
    """The fields that could stand beside the last part of a place."""
    model: type[BaseModel] = RecipeSpec
    for part in loc[:-1]:
        known = model.model_fields.get(str(part))
        kinds = [known.annotation, *get_args(known.annotation)] if known else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return dict(model.model_fields)


def _meant(loc: tuple[Any, ...]) -> str:
    near = get_close_matches(str(loc[-1]), _fields(loc), n=1, cutoff=0.75)
    return f" Did you mean “{near[0]}”?" if near else " Check its spelling, or take the line out."


def _choices(loc: tuple[Any, ...]) -> str:
    known = _fields(loc).get(str(loc[-1]))
    kinds = [kind for kind in get_args(known.annotation) if kind is not NoneType] if known else []
    return f", one of {', '.join(kinds)}" if kinds and all(isinstance(kind, str) for kind in kinds) else ""


def _line(root: yaml.Node, loc: tuple[Any, ...]) -> int | None:
    """The line, from 1, of what stands at a place or nearest around it; None for the whole."""
    node, line = root, None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
