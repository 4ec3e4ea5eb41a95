"""A recipe as a file that a person can read, and the command line that does the same."""

import shlex
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from app.contracts.recipe import ModelFiles, RecipeSpec
from app.core import storage
from app.core.config import ROOT
from app.core.errors import Invalid

_HEAD = "# Run it anywhere: gpt-builder train recipe.yaml --version <frozen version> --out <folder>\n"
_LARGEST = 100_000


def to_yaml(recipe: RecipeSpec) -> str:
    """The recipe with every value written out, so that later defaults change nothing."""
    return _HEAD + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> RecipeSpec:
    """Read a recipe file. Raises Invalid naming the first value that does not fit."""
    if len(text) > _LARGEST:
        raise Invalid(fields={"file": "This file is larger than any recipe. Choose a recipe.yaml."})
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # ValueError: a date that does not exist, a number of thousands of digits.
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f" in line {line + 1}" if line is not None else ""
        sentence = f"The file is not valid YAML{place}. Check the spaces at the start of lines."
        raise Invalid(fields={"file": sentence}) from None
    if not isinstance(values, dict):
        raise Invalid(fields={"file": "The file holds no recipe. It must be a list of names and values."})
    try:
        return RecipeSpec.model_validate(values)
    except ValidationError as error:
        raise Invalid(fields={"file": explain(error)}) from None


def explain(error: ValidationError) -> str:
    """The first problem as a sentence, without echoing what was sent."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"“{name}” is not a value of a recipe. Check its spelling."
    return f"{name}: {message}." if name else f"{message[:1].upper()}{message[1:]}."


def command_line(version_id: str, base: ModelFiles | None = None, instruction: str = "") -> str:
    """The command that trains the same: this recipe, these rows, this base, and the instruction that is read first.

    For a shell in the installation's folder: what lies below it is named from there, everything else whole.
    """
    program = ".venv/bin/gpt-builder" if (ROOT / ".venv/bin/gpt-builder").is_file() else "gpt-builder"
    parts = [f"{program} train recipe.yaml", f"--version {_place(storage.version_dir(version_id))}"]
    if base is not None:
        parts.append(f"--base {_place(Path(base.base_dir))}")
        parts += [f"--overlay {one.kind}:{_place(Path(one.dir))}" for one in base.overlays]
    if instruction:
        parts.append(f"--instruction {shlex.quote(instruction)}")
    return " \\\n  ".join([*parts, "--out my-model"])


def _place(folder: Path) -> str:
    return shlex.quote(str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder))
