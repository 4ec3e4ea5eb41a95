"""`gpt-builder train`: the engine started by hand, exactly as a run starts it, without database or queue."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal, cast

from app.contracts import recipe_file
from app.contracts.recipe import ModelFiles, Overlay, RecipeSpec, TrainOrder
from app.core.config import ROOT
from app.core.db import new_id


class BadRecipe(Exception):
    """The recipe file cannot be used; the sentence says where and why."""


def read_recipe(path: Path) -> RecipeSpec:
    """A recipe from YAML or JSON. Raises BadRecipe."""
    try:
        return recipe_file.read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRecipe(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadRecipe(f"{path} is no text in UTF-8. Save it as such, then try again.") from error
    except recipe_file.BadRecipeFile as error:
        told = str(error)
        raise BadRecipe(f"{path}:\n{told}" if "\n" in told else f"{path}: {told}") from error


def base_of(folder: Path | None, overlays: list[str]) -> ModelFiles | None:
    """The base from `--base` and each `--overlay KIND:FOLDER`. Raises BadRecipe."""
    if folder is None:
        if overlays:
            raise BadRecipe("--overlay needs --base, the folder that it lies on.")
        return None
    found = []
    for text in overlays:
        kind, _, place = text.partition(":")
        if kind not in ("lora", "layers") or not place:
            raise BadRecipe(f"--overlay {text}: write lora:FOLDER or layers:FOLDER.")
        found.append(Overlay(kind=cast(Literal["lora", "layers"], kind), dir=str(Path(place).resolve())))
    return ModelFiles(base_dir=str(folder.resolve()), overlays=found)


def order_of(
    recipe: RecipeSpec, *, version_dir: Path, base: ModelFiles | None, out_dir: Path, instruction: str, resume: bool
) -> TrainOrder:
    """What the engine is told: what a run with this recipe would tell it."""
    return TrainOrder(
        run_id=new_id(),
        attempt_id=new_id(),
        fence=1,
        recipe=recipe,
        base=base,
        data_dir=str(version_dir.resolve()),
        out_dir=str(out_dir.resolve()),
        resume=resume,
        system_prompt=instruction if recipe.use_instruction else "",
    )


def run(order: TrainOrder) -> int:
    """Train and return the engine's exit code. Its events pass to standard output; Ctrl+C stops and keeps."""
    out_dir = Path(order.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.engine", "train"],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(order.model_dump_json() + "\n")
    child.stdin.flush()
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            if child.poll() is None:
                # A second Ctrl+C does not wait for the checkpoint.
                signal.signal(signal.SIGINT, lambda *_: child.kill())
                child.stdin.write(json.dumps({"verb": "stop_and_keep"}) + "\n")
                child.stdin.flush()
