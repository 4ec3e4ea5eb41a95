"""A recipe as a file that a person can read, and the command line that does the same."""

import shlex
from pathlib import Path

import yaml

from app.contracts import recipe_file
from app.contracts.recipe import ModelFiles, RecipeSpec
from app.core import storage
from app.core.config import ROOT
from app.core.errors import Invalid

_HEAD = "# Run it anywhere:\n# gpt-builder train recipe.yaml --version <frozen version> --out <folder>\n"
_LARGEST = 100_000


def to_yaml(recipe: RecipeSpec) -> str:
    """The recipe with every value written out, so that later defaults change nothing."""
    return _HEAD + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> RecipeSpec:
    """Read a recipe file. Raises Invalid with a line for each value that does not fit."""
    if len(text) > _LARGEST:
        raise Invalid(fields={"file": "This file is larger than any recipe. Choose a recipe.yaml."})
    try:
        return recipe_file.read(text)
    except recipe_file.BadRecipeFile as error:
        raise Invalid(fields={"file": str(error)}) from None


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
