"""`gpt-builder train` trains as a run does, without database or queue."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from app.contracts.events import EXIT_DONE
from app.core import storage
from app.core.db import transaction
from tests.conftest import ROOT
from tests.factories import a_recipe, a_world


def train(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, "GPT_BUILDER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_recipe_file_becomes_a_model(database: Path, home: Path, tmp_path: Path) -> None:
    with transaction() as session:
        version_id = a_world(session).version_id
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(a_recipe(max_steps=4).model_dump(mode="json")))
    out = tmp_path / "out"
    answer = train(
        tmp_path / "nowhere", str(recipe), "--version", str(storage.version_dir(version_id)), "--out", str(out)
    )
    assert answer.returncode == EXIT_DONE, answer.stderr[-3000:]
    events = [json.loads(line) for line in answer.stdout.splitlines()]
    assert events[-1]["type"] == "ended"
    assert sum(event["type"] == "step" for event in events) == 4
    assert (out / events[-1]["model_dir"]).is_dir()
    assert not (tmp_path / "nowhere").exists(), "no database and no home is needed"


def test_a_recipe_that_does_not_fit_names_the_field(tmp_path: Path, home: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: lora\nbase_source: starter\nepochs: -1\n")
    answer = train(home, str(recipe), "--version", str(tmp_path), "--out", str(tmp_path / "out"))
    assert answer.returncode == 1
    assert f"{recipe}: Line 3, “epochs” must be more than 0.\n" in answer.stderr
    assert not (tmp_path / "out").exists()
