"""The recipe page as a person uses it: proposals, changes, mistakes, a base from a folder, the start."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sqlalchemy import select

from app.core import config, storage
from app.core.db import reading, transaction
from app.datasets.freezing import FROZEN
from app.datasets.models import DatasetVersion
from app.recipes import bases, model_card
from app.recipes import service as recipes
from app.recipes.base_facts import language_names
from app.recipes.machine import this_machine
from app.recipes.models import RecipeDraft
from app.runs.models import Run
from tests.visitors import browser_of, make_person, make_project
from tests.worker.tiny import make_model


def draft(project_id: str) -> RecipeDraft:
    with reading() as session:
        return session.get_one(RecipeDraft, project_id)


def test_without_a_frozen_version_the_page_says_what_to_do(app, database):
    person = make_person(role="editor")
    shown = browser_of(app, person).get(f"/projects/{make_project(person.workspace_id)}/recipe")
    assert shown.status_code == 200
    assert "Freeze your rows first" in shown.text


def test_a_viewer_sees_everything_and_no_button_that_would_be_refused(app, page):
    reader = browser_of(app, make_person("Vera", "viewer", workspace_id=page.workspace_id))
    text = reader.get(f"/projects/{page.project_id}/recipe").text
    picks = re.findall(r'<button class="choice recipe-pick"([^>]*)>', text)
    assert len(picks) >= 4
    assert all(" disabled " in pick for pick in picks)
    for words in ("Start training", "Use these values", "Use this size", "Measure on this machine"):
        assert words not in text
    assert "Letter by letter" in text
    assert (
        "disabled"
        not in re.findall(
            r'<button class="choice recipe-pick"([^>]*)>', page.get(f"/projects/{page.project_id}/recipe").text
        )[0]
    )


def test_the_page_proposes_and_explains(page):
    text = page.get(f"/projects/{page.project_id}/recipe").text
    for words in ("Quick", "Balanced", "Thorough", "Letter by letter", "What to expect", "Start training"):
        assert words in text


def test_a_change_survives_another_preset_and_can_be_taken_back(page):
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text)
    assert page.post(address, data={**fields, "epochs": "7", "do": "save"}).status_code == 303
    assert draft(page.project_id).choices["overrides"] == {"epochs": 7.0}
    fields = form_of(page.get(address).text)
    page.post(address, data={**fields, "preset": "quick"})
    assert (draft(page.project_id).preset, draft(page.project_id).choices["overrides"]) == ("quick", {"epochs": 7.0})
    assert "You changed: Passes over your rows" in page.get(address).text
    page.post(address, data={**form_of(page.get(address).text), "do": "reset"})
    assert draft(page.project_id).choices["overrides"] == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", "many", "is not a number"),
        ("epochs", "-1", "more than 0 and at most 1,000"),
        ("scratch.dropout", "1.5", "from 0 to less than 1"),
        ("scratch.heads", "3", "“Width” 128 must be a multiple of “Attention heads” 3"),
        ("learning_rate", "nan", "Learning rate"),
        ("epochs", "1,000", "can be read as 1000 or as 1."),
        ("scratch.layers", "2,5", "is not a whole number"),
        ("micro_batch_size", "3", "must be a multiple of “Rows at once” 3"),
        ("max_length_tokens", "100000", "can read at most"),
    ],
)
def test_a_value_that_does_not_fit_is_explained_beside_it(page, name, value, said):
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text)
    answer = page.post(address, data={**fields, name: value, "do": "save"})
    assert answer.status_code == 422
    assert answer.headers["HX-Push-Url"] == "false"  # reload and Back stay with the page that was left
    assert said in answer.text
    assert f'value="{value}"' in answer.text, "what was typed stays"
    assert 'aria-invalid="true"' in answer.text


def test_too_many_sample_questions_are_counted_for_the_person(page):
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text)
    answer = page.post(address, data={**fields, "sample_prompts": "Why?\n" * 9, "do": "save"})
    assert answer.status_code == 422
    assert "Sample questions: at most 8 of them." in answer.text


def test_a_classic_form_says_which_parts_are_fixed(page):
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text) | {"scratch.architecture": "gpt2", "do": "save"}
    for name, value, said in (("positions", "sinusoidal", "are learned"), ("norm", "batch", "is LayerNorm")):
        answer = page.post(address, data={**fields, f"scratch.{name}": value})
        assert answer.status_code == 422
        assert said in answer.text
    assert page.post(address, data={**fields, "scratch.norm": "layer"}).status_code == 303


@pytest.fixture
def tuning(page):
    """The page of a project whose version has conversations; the last 8 of 24 with a second, rejected answer."""
    with transaction() as session:
        version = session.scalars(select(DatasetVersion)).one()
        said = [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "Yes, until six."}]
        rows = [
            {"_rid": i, "split": "train", "kind": "chat", "messages": said, "text": "", "meta": "{}"}
            | ({"chosen": said[1:], "rejected": [{"role": "assistant", "content": "No."}]} if i >= 16 else {})
            for i in range(24)
        ]
        table = pa.Table.from_pylist(rows, schema=FROZEN)
        pq.write_table(table, storage.version_dir(version.id) / "data-00000.parquet")
        version.kind, version.train_rows, version.validation_rows = "chat", 24, 0
    return page


def test_preferences_have_their_own_rows_and_a_smaller_learning_rate(tuning):
    address = f"/projects/{tuning.project_id}/recipe"
    before = form_of(tuning.get(address).text)
    assert tuning.post(address, data={**before, "learn_from": "preferences", "do": "save"}).status_code == 303
    after = form_of(tuning.get(address).text)
    assert float(after["learning_rate"]) == pytest.approx(float(before["learning_rate"]) / 10)
    assert float(after["epochs"]) == 2.0
    values = yaml.safe_load(tuning.get(f"{address}.yaml").text)
    assert values["learn_from"] == "preferences"


def test_preferences_without_any_are_refused_beside_the_choice(tuning):
    folder = next(storage.version_dir("x").parent.iterdir())
    pq.write_table(pq.read_table(folder / "data-00000.parquet").slice(0, 16), folder / "data-00000.parquet")
    address = f"/projects/{tuning.project_id}/recipe"
    fields = form_of(tuning.get(address).text)
    answer = tuning.post(address, data={**fields, "learn_from": "preferences", "do": "save"})
    assert answer.status_code == 422
    assert "No row of this version has a preferred and a rejected answer" in answer.text


def test_qlora_is_offered_only_with_a_card_and_refused_without(tuning, monkeypatch):
    address = f"/projects/{tuning.project_id}/recipe"
    tuning.post(address, data={**form_of(tuning.get(address).text), "method": "lora"})
    text = tuning.get(address).text
    assert 'name="lora.dora"' in text
    assert 'name="lora.four_bit"' not in text
    fields = form_of(text)
    answer = tuning.post(address, data={**fields, "lora.four_bit": "on", "do": "save"})
    assert answer.status_code == 422
    assert "needs an NVIDIA graphics card" in answer.text
    with_card = this_machine().model_copy(update={"gpu_name": "A card", "gpu_memory_bytes": 2**34})
    for module in ("drafts", "service"):
        monkeypatch.setattr(f"app.recipes.{module}.this_machine", lambda: with_card)
    assert 'name="lora.four_bit"' in tuning.get(address).text
    assert tuning.post(address, data={**fields, "lora.four_bit": "on", "do": "save"}).status_code == 303


def test_adamw_in_8_bit_is_offered_only_with_a_card_and_refused_without(tuning, monkeypatch):
    address = f"/projects/{tuning.project_id}/recipe"
    text = tuning.get(address).text
    assert "adamw_8bit" not in text
    answer = tuning.post(address, data={**form_of(text), "optimizer": "adamw_8bit", "do": "save"})
    assert answer.status_code == 422
    assert "AdamW in 8 bit needs an NVIDIA graphics card" in answer.text
    with_card = this_machine().model_copy(update={"gpu_name": "A card", "gpu_memory_bytes": 2**34})
    for module in ("drafts", "service"):
        monkeypatch.setattr(f"app.recipes.{module}.this_machine", lambda: with_card)
    text = tuning.get(address).text
    assert "adamw_8bit" in text
    assert tuning.post(address, data={**form_of(text), "optimizer": "adamw_8bit", "do": "save"}).status_code == 303


def with_memory(monkeypatch, usable_bytes: int) -> None:
    machine = this_machine().model_copy(update={"memory_bytes": usable_bytes + 3 * 2**29})
    for module in ("drafts", "service"):
        monkeypatch.setattr(f"app.recipes.{module}.this_machine", lambda: machine)


def test_what_does_not_fit_names_the_nearest_that_does(tuning, monkeypatch):
    address = f"/projects/{tuning.project_id}/recipe"
    cards = tuning.get(address).text.split('id="method"')[1]
    needs = [int(float(one) * 1e6) for one in re.findall(r"Needs ([\d.]+) MB of", cards)]
    full, lora, _last = needs
    assert lora < full
    with_memory(monkeypatch, (lora + full) // 2)
    tuning.post(address, data={**form_of(tuning.get(address).text), "method": "full"})
    text = tuning.get(address).text
    assert "This does not fit in memory." in text
    assert "Start training" in text, "memory is an estimate, and a run goes on with less at once"
    way = re.search(r'name="method" value="lora">.*?Use LoRA', text, re.S)
    assert way
    tuning.post(address, data={**form_of(text), "method": "lora"})
    assert "This does not fit in memory." not in tuning.get(address).text


def test_what_can_never_fit_is_not_queued(tuning, monkeypatch):
    address = f"/projects/{tuning.project_id}/recipe"
    machine = this_machine().model_copy(update={"memory_bytes": 2**27})
    for module in ("drafts", "service"):
        monkeypatch.setattr(f"app.recipes.{module}.this_machine", lambda: machine)
    text = tuning.get(address).text
    assert "It cannot run here." in text
    assert "Start training" not in text
    answer = tuning.post(f"/projects/{tuning.project_id}/runs", data={"client_request_id": "one"})
    assert answer.status_code == 409
    assert "even one row at a time it needs about" in answer.text
    with reading() as session:
        assert session.scalars(select(Run)).all() == []


def test_dora_begins_from_zero_by_itself(tuning):
    address = f"/projects/{tuning.project_id}/recipe"
    tuning.post(address, data={**form_of(tuning.get(address).text), "method": "lora"})
    fields = form_of(tuning.get(address).text)
    assert fields["lora.initialisation"] == "pissa"
    assert tuning.post(address, data={**fields, "lora.dora": "on", "do": "save"}).status_code == 303
    assert form_of(tuning.get(address).text)["lora.initialisation"] == "default"


def test_all_wrong_values_are_named_at_once(page):
    address = f"/projects/{page.project_id}/recipe"
    wrong = {"epochs": "many", "learning_rate": "-1", "scratch.dropout": "1.5", "max_length_tokens": "100000"}
    answer = page.post(address, data={**form_of(page.get(address).text), **wrong, "do": "save"})
    assert answer.status_code == 422
    assert answer.text.count('aria-invalid="true"') == len(wrong)
    said = answer.text.split("These values do not fit: ")[1].split(".")[0]
    assert len(said.split(", ")) == len(wrong)
    assert "You changed" not in page.get(address).text


def test_start_freezes_the_values_on_screen_and_a_second_click_finds_the_same_run(page):
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text) | {"epochs": "2", "name": "First try", "do": "start"}
    for _ in range(2):
        handed_on = page.post(address, data=fields)
        assert handed_on.status_code == 307
        answer = page.post(handed_on.headers["location"], data=fields)
        assert answer.status_code == 303
    with reading() as session:
        run = session.scalars(select(Run)).one()
    assert answer.headers["location"] == f"/runs/{run.id}"
    assert (run.name, run.state, run.recipe["epochs"], run.recipe["method"]) == ("First try", "queued", 2.0, "scratch")
    assert run.estimate["steps"] > 0
    assert "Waiting for its turn" in page.get(f"/runs/{run.id}").text
    assert form_of(page.get(address).text)["name"] == "", "the next run is not called the same"


def test_a_second_click_from_the_page_of_before_changes_no_values(page):
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text)
    page.post(address, data={**fields, "preset": "quick"})
    page.post(address, data={**fields, "do": "save"})
    kept = draft(page.project_id)
    assert (kept.preset, kept.choices["overrides"]) == ("quick", {})


def test_warm_up_and_looks_are_told_for_the_steps_that_it_really_has(page):
    address = f"/projects/{page.project_id}/recipe"
    page.post(address, data={**form_of(page.get(address).text), "epochs": "900"})
    page.post(address, data={**form_of(page.get(address).text), "max_steps": "6", "do": "save"})
    recipe, shown = ready(page).recipe, page.get(address).text
    assert (recipe.warmup_steps, recipe.evaluate_every_steps) == (1, 1)
    assert "1 of 6 steps, so that the first steps do no harm." in shown
    assert set(draft(page.project_id).choices["overrides"]) == {"epochs", "max_steps"}
    page.post(address, data={**form_of(shown), "warmup_steps": "10", "do": "save"})
    assert "The run has 6 steps: it rises in at most half of them." in page.get(address).text


def test_a_limit_in_hours_plans_the_steps_that_fit(page):
    address = f"/projects/{page.project_id}/recipe"
    page.post(address, data={**form_of(page.get(address).text), "epochs": "900"})
    planned, hours = ready(page).estimate["steps"], ready(page).estimate["seconds"] / 2 / 3600
    assert page.post(address, data={**form_of(page.get(address).text), "max_hours": f"{hours:.4f}"}).status_code == 303
    fitted = ready(page)
    assert 1 < fitted.recipe.max_steps == fitted.estimate["steps"] < planned
    assert fitted.estimate["seconds"] < 3600 * hours
    assert fitted.recipe.warmup_steps < fitted.recipe.max_steps
    shown = page.get(address).text
    assert f"{fitted.recipe.max_steps:,} of {planned:,} steps fit in" in shown
    # What was counted is no choice of the person's: it goes again with the limit.
    page.post(address, data=form_of(shown))
    assert set(draft(page.project_id).choices["overrides"]) == {"epochs", "max_hours"}
    page.post(address, data={**form_of(page.get(address).text), "max_hours": "900"})
    assert (ready(page).recipe.max_steps, ready(page).estimate["steps"]) == (None, planned)
    assert "must be more than 0 and at most 1,000" in page.post(address, data={**form_of(shown), "max_hours": "0"}).text


def ready(page):
    with transaction() as session:
        return recipes.ready(session, page.person.actor, page.project_id)


def test_a_base_model_from_a_folder_is_checked_copied_and_chosen(page, tmp_path: Path, monkeypatch):
    from worker.tasks.recipes import bring

    monkeypatch.setenv("GPT_BUILDER_MODEL_FOLDERS", f'["{tmp_path}"]')
    config.get_settings.cache_clear()
    folder = make_model(tmp_path / "tiny")
    (folder / "README.md").write_text("---\nlanguage: de\n---\n")
    address = f"/projects/{page.project_id}/recipe"
    assert page.post(f"{address}/folder", data={"folder": str(folder)}).status_code == 303
    with reading() as session:
        entry = bases.entries(session, page.workspace_id)[0]
    bring(entry.id)
    with reading() as session:
        entry = bases.entries(session, page.workspace_id)[0]
    assert entry.state == "succeeded"
    assert Path(entry.folder) != folder
    (folder / "model.safetensors").unlink()
    assert entry.details["facts"]["layers"] == 2
    fields = form_of(page.get(address).text) | {"base": f"folder:{entry.id}"}
    assert page.post(address, data=fields).status_code == 303
    text = page.get(address).text
    assert "Everything" in text
    assert "LoRA" in text
    assert "Languages: German" in text
    answer = page.post(f"{address}/folder", data={"folder": "/etc"})
    assert answer.status_code == 422
    assert "may not be read" in answer.text


def test_the_picker_says_which_languages_a_base_knows(page, tmp_path: Path, monkeypatch):
    starter = page.get(f"/projects/{page.project_id}/recipe").text
    assert ("Languages: English" in starter) == (bases.starter() is not None)
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\nlanguage:\n- fr\n- pt-BR\n- no\n- gsw\n- [x]\n---\n# A model\nlanguage: xx\n")
    assert model_card.languages(card) == ["fr", "pt-BR", "no", "gsw"]
    assert language_names(model_card.languages(card)) == ("French, Portuguese, Norwegian", 1)
    assert model_card.licence(card) == "mit"
    for text in ("# No head", "---\nlanguage: &a [*a]\n---\n", "---\n{broken\n---\n", "---\n- a list\n---\n"):
        card.write_text(text)
        assert model_card.languages(card) == []


def test_names_are_shown_as_text(page):
    with transaction() as session:
        session.add(RecipeDraft(project_id=page.project_id, choices={"name": '"><img src=x onerror=alert(1)>'}))
    text = page.get(f"/projects/{page.project_id}/recipe").text
    assert "<img src=x" not in text


def form_of(text: str) -> dict[str, str]:
    """The fields of the page's one form as a browser would send them, without the buttons."""
    import html

    found: dict[str, str] = {}
    for tag in re.findall(r"<input[^>]*>", text):
        values = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if values.get("type") == "checkbox" and not re.search(r"\schecked", tag):
            continue
        if "name" in values and values.get("type") not in ("file", "search", "radio"):
            found[values["name"]] = html.unescape(values.get("value", "on"))
    for name, body in re.findall(r'<textarea[^>]*name="([^"]+)"[^>]*>(.*?)</textarea>', text, re.S):
        found[name] = html.unescape(body)
    for name, body in re.findall(r'<select[^>]*name="([^"]+)"[^>]*>(.*?)</select>', text, re.S):
        chosen = re.search(r'value="([^"]*)" selected', body)
        found[name] = html.unescape(chosen[1]) if chosen else ""
    for other in ("ref", "revision", "folder", "q", "theme", "next"):
        found.pop(other, None)
    return found
