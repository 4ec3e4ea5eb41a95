"""The card of a new GPT, the command line, the way back from a run to the recipe page, and a drawer without gaps."""

import re
import shlex
from html import unescape
from pathlib import Path

import pytest
import yaml

from app.contracts.recipe import LoraSpec, ModelFiles, Overlay, RecipeSpec, ScratchSpec
from app.core import config
from app.core.db import reading, transaction
from app.projects.models import Objective
from app.recipes import fields, new_model, tokens_preview
from app.recipes.base_facts import from_scratch
from app.recipes.models import RecipeDraft
from app.runs.models import Run
from app.supervisor import training
from tests.factories import a_version
from tests.visitors import make_person, make_project
from worker import supervision
from worker.engine import tokenizer as engine_tokenizer

_FILLED_ELSEWHERE = {"method", "base_source", "base_ref", "scratch", "lora"}


@pytest.fixture
def page(page):
    """The recipe page of a project with an objective."""
    with transaction() as session:
        session.get_one(Objective, page.project_id).task = "Say rhymes that a child's ear likes."
    return page


def draft(project_id: str) -> dict:
    with reading() as session:
        return session.get_one(RecipeDraft, project_id).choices


def test_every_value_of_a_recipe_has_a_field() -> None:
    for prefix, part in (("", RecipeSpec), ("lora.", LoraSpec), ("scratch.", ScratchSpec)):
        names = {prefix + name for name in part.model_fields} - _FILLED_ELSEWHERE
        assert names - set(fields.BY_NAME) == set()


def test_the_slider_sets_the_shape_and_the_card_follows(page) -> None:
    address = f"/projects/{page.project_id}/recipe"
    assert page.post(address, data={"do": "size", "shape": "2"}).status_code == 303
    assert (
        draft(page.project_id)["overrides"] | {"scratch.layers": 8, "scratch.width": 320}
        == draft(page.project_id)["overrides"]
    )
    text = page.get(address).text
    assert re.search(r'id="scratch-size"[^>]* value="2"', text)
    assert "8 layers: 5 heads, then 320 →" in unescape(text)
    assert page.post(address, data={"do": "size", "shape": "9"}).status_code == 422


def test_the_slider_counts_what_the_model_will_have() -> None:
    spec = ScratchSpec(layers=4, heads=4, width=256, context_length=256, vocabulary_size=4096)
    sizes = new_model.sizes(spec, from_scratch(spec))
    assert [size.name for size in sizes if size.is_current] == ["Small"]
    assert sizes[1].parameters == from_scratch(spec).parameters
    assert [size.parameters for size in sizes] == sorted(size.parameters for size in sizes)
    assert new_model.nearest(sizes, 10) == 1


def test_advice_weighs_text_against_size() -> None:
    fits = new_model.advice(1_000_000, 5_000_000, 20_000_000)
    assert len(fits) == 1
    assert "20 for each of its 1.0 million parameters" in fits[0]
    assert "short for this size" in " ".join(new_model.advice(10_000_000, 100_000, 400_000))
    assert "After about 4 passes" in " ".join(new_model.advice(1_000_000, 5_000_000, 50_000_000))
    assert "larger size" in " ".join(new_model.advice(1_000_000, 50_000_000, 100_000_000))


def test_the_preview_cuts_as_the_engine_will(page) -> None:
    text = "the cat sat on the mat. Größe 1234 ☂ ok. " * 40
    ours, theirs = tokens_preview.train(text, 400), engine_tokenizer.train_bpe(engine_tokenizer.batched([text]), 400)
    assert ours.get_vocab() == theirs.get_vocab()
    with reading() as session:
        version_id = session.get_one(RecipeDraft, page.project_id).version_id if draft_exists(page) else None
    assert version_id is None
    shown = page.get(f"/projects/{page.project_id}/recipe/tokenizer").text
    assert re.findall(r"<span>(.)</span>", shown)[:3] == ["t", "h", "e"]  # little text: letter by letter
    typed = page.get(f"/projects/{page.project_id}/recipe/tokenizer", params={"try_text": "Hi"}).text
    assert re.findall(r"<span>(.)</span>", typed) == ["H", "i"]
    assert "here 2 tokens for 2 characters" in typed


def draft_exists(page) -> bool:
    with reading() as session:
        return session.get(RecipeDraft, page.project_id) is not None


def test_pieces_put_together_are_the_text(database) -> None:
    project_id = make_project(make_person().workspace_id)
    with transaction() as session:
        version_id = a_version(session, project_id).id
    text = "the cat – Größe ☂☂ 12"
    found = tokens_preview.preview(version_id, "bpe", 300, text)
    assert "".join(found.pieces) == text
    assert found.tokens > len(found.pieces) > 5


def test_the_command_tells_the_engine_what_the_run_tells_it(page, tmp_path: Path) -> None:
    address = f"/projects/{page.project_id}/recipe"
    text = unescape(page.get(address).text)
    command = re.search(r"<code class=\"language-bash\">(.*?)</code>", text, re.S)
    recipe = re.search(r"<code class=\"language-yaml\">(.*?)</code>", text, re.S)
    assert command
    assert recipe
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe[1])
    words = shlex.split(command[1].replace("\\\n", " "))
    assert words[0].endswith("gpt-builder")
    assert words[1:3] == ["train", "recipe.yaml"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    page.post(address, data={"do": "start"})
    page.post(f"/projects/{page.project_id}/runs", data={"client_request_id": "one"})
    with reading() as session:
        run = session.query(Run).one()
    run.attempt_id = "a"
    theirs = supervision.order_of(run)
    version = config.ROOT / options["--version"]  # a shell in the installation's folder
    ours = training.order_of(
        training.read_recipe(file), version_dir=version, base=None, out_dir=tmp_path,
        instruction=options.get("--instruction", ""), resume=True,
    )  # fmt: skip
    same = {"recipe", "base", "data_dir", "system_prompt"}
    assert ours.model_dump(include=same) == theirs.model_dump(include=same)


def test_a_base_with_overlays_on_the_command_line(tmp_path: Path) -> None:
    found = training.base_of(tmp_path, [f"lora:{tmp_path}/a", f"layers:{tmp_path}/b"])
    overlays = [Overlay(kind="lora", dir=f"{tmp_path}/a"), Overlay(kind="layers", dir=f"{tmp_path}/b")]
    assert found == ModelFiles(base_dir=str(tmp_path), overlays=overlays)
    with pytest.raises(training.BadRecipe):
        training.base_of(tmp_path, ["else:b"])
    with pytest.raises(training.BadRecipe):
        training.base_of(None, ["lora:b"])


def test_the_recipe_of_a_run_comes_back_to_the_page(page) -> None:
    address = f"/projects/{page.project_id}/recipe"
    page.post(address, data={"do": "size", "shape": "0"})
    page.post(f"/projects/{page.project_id}/runs", data={"client_request_id": "one"})
    with transaction() as session:
        run = session.query(Run).one()
        run.recipe = {**run.recipe, "learning_rate": 0.0123, "seed": 77}
        run_id, wanted = run.id, dict(run.recipe)
    page.post(address, data={"do": "reset"})
    assert page.post(f"/runs/{run_id}/clone").headers["location"] == address
    assert "This page shows the recipe of “" in page.get(address).text
    assert yaml.safe_load(page.get(f"/projects/{page.project_id}/recipe.yaml").text) == wanted
