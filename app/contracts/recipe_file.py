"""A recipe file as a person wrote it: every value by the field it is for, every refusal with its line."""

from typing import Any

import yaml
from pydantic import ValidationError

from app.contracts.recipe import RecipeSpec

_NULL = "tag:yaml.org,2002:null"


class BadRecipeFile(ValueError):
    """The file is no recipe. The sentence names line and value."""


class _Loader(yaml.SafeLoader):
    """YAML whose plain words stay words: `yes` is no number, `1:30` no 90. The fields say what they mean."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag == _NULL]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str) -> RecipeSpec:
    """The recipe of a YAML or JSON text. Raises BadRecipeFile for the first thing that does not fit."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        values = loader.construct_document(root) if root is not None else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # ValueError: a value tagged as a number or date that it is not.
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f" in line {line + 1}" if line is not None else ""
        raise BadRecipeFile(f"The file is not valid YAML{place}. Check the spaces at the start of lines.") from None
    finally:
        loader.dispose()
    if not isinstance(root, yaml.MappingNode):
        raise BadRecipeFile("The file holds no recipe. It must be a list of names and values.")
    _refuse_twins(root)
    try:
        return RecipeSpec.model_validate(values)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        raise BadRecipeFile(_explained(root, first)) from None


def _refuse_twins(root: yaml.MappingNode) -> None:
    for node in (root, *(value for _, value in root.value if isinstance(value, yaml.MappingNode))):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise BadRecipeFile(f"Line {line}: “{key.value}” stands in line {seen[key.value]} already. Keep one.")
            seen[key.value] = line


def _explained(root: yaml.Node, problem: Any) -> str:
    """One problem of pydantic's as a sentence, without echoing what was sent."""
    name = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    line = _line(root, problem["loc"])
    place = f"Line {line}, " if line else ""
    if problem["type"] == "extra_forbidden":
        return f"{place}“{name}” is not a value of a recipe. Check its spelling."
    return f"{place}{name}: {message}." if name else f"{message[:1].upper()}{message[1:]}."


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
