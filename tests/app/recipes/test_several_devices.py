"""The choice of devices on the recipe page: what this machine offers, what cannot be, and what is kept of it."""

import re

import pytest
from pydantic import ValidationError

from app.contracts.recipe import RecipeSpec
from app.core.db import reading
from app.recipes import compose, drafts, estimate, service, several
from app.recipes.machine import Card, Machine, cards_of
from app.recipes.models import RecipeDraft
from app.runs.models import Run
from tests.app.recipes.test_presets import MEDIUM, rows, spec
from tests.factories import a_recipe

CARD = Card(id="0", name="Card of 24", memory_bytes=24 * 2**30)
TWO = Machine(
    cores=16, memory_bytes=64 * 2**30, has_bf16=True, gpu_name=CARD.name, gpu_memory_bytes=CARD.memory_bytes,
    cards=(CARD, CARD.model_copy(update={"id": "1"})),
)  # fmt: skip
PLAIN = Machine(cores=2, memory_bytes=16 * 2**30, has_bf16=True)
TOLD = "0, GPU-aa, Card of 24, 24576\n1, GPU-bb, Card of 48, 49152\n"


def on(monkeypatch, machine: Machine) -> None:
    for module in (service, drafts):
        monkeypatch.setattr(module, "this_machine", lambda: machine)


def post(page, **changes):
    """The page's form, sent with `changes`; lists are several fields of one name."""
    text = page.get(page.address).text
    form = re.search(r'<form method="post"[^>]*id="recipe-form".*?</form>', text, re.S).group(0)
    values: dict[str, object] = {}
    for tag in re.findall(r"<input[^>]*>", form):
        about = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if about.get("type") != "checkbox" or " checked" in tag:
            values[about["name"]] = about.get("value", "on")
    for name, inside in re.findall(r'<select[^>]*name="([^"]+)".*?>(.*?)</select>', form, re.S):
        chosen = re.search(r'<option value="([^"]*)" selected', inside) or re.search(r'<option value="([^"]*)"', inside)
        values[name] = chosen.group(1)
    return page.post(page.address, data={**values, "do": "save", **changes})


def chosen(page) -> dict[str, object]:
    with reading() as session:
        return session.get_one(RecipeDraft, page.project_id).choices["overrides"]


def test_a_machine_without_cards_says_that_it_has_one_device(page, monkeypatch):
    on(monkeypatch, PLAIN)
    text = page.get(page.address).text
    assert "This machine has one device to train on: its processor with 2 cores." in text
    assert 'name="processes"' in text
    assert 'name="devices"' not in text
    said = post(page, processes="3")
    assert said.status_code == 422
    assert "The processor has 2 cores" in said.text
    said = post(page, shards="on")
    assert "There is nobody to split the model with." in said.text
    # Muon, which is proposed here, cannot be split; AdamW can.
    said = post(page, processes="2", shards="on")
    assert "A split model learns with AdamW" in said.text
    assert post(page, processes="2", shards="on", optimizer="adamw").status_code == 303
    assert chosen(page) == {"processes": 2, "shards": True, "optimizer": "adamw"}
    assert post(page, do="start").headers["location"].endswith("/runs")
    shown = page.get(page.address).text
    assert "Only a run on one device can be measured" in shown
    sent = page.post(f"/projects/{page.project_id}/runs", data={"client_request_id": "one"})
    assert sent.status_code == 303
    with reading() as session:
        run = session.query(Run).one()
    assert (run.recipe["processes"], run.recipe["shards"], run.recipe["devices"]) == (2, True, [])
    assert "2 that train together" in page.get(f"/runs/{run.id}").text


def test_cards_are_ticked_and_taken_back(page, monkeypatch):
    on(monkeypatch, TWO)
    text = page.get(page.address).text
    assert "Graphics card 1: Card of 24" in text
    assert 'name="processes"' not in text
    assert post(page, devices=["", "0", "1"]).status_code == 303
    assert chosen(page) == {"devices": ["0", "1"]}
    assert page.get(page.address).text.count("checked") > text.count("checked")
    assert post(page, devices=["", "7"]).status_code == 422
    assert chosen(page) == {"devices": ["0", "1"]}
    assert post(page, devices="").status_code == 303
    assert chosen(page) == {}


@pytest.mark.parametrize(
    ("machine", "values", "field", "said"),
    [
        (PLAIN, {"devices": ["0"]}, "devices", "This machine has no graphics card 0: it trains on its processor."),
        (TWO, {"devices": ["0", "2"]}, "devices", "This machine has no graphics card 2. Choose of: 0, 1."),
        (TWO, {"processes": 2}, "processes", "Tick the cards"),
        (TWO, {"devices": ["0", "1"], "batch_size": 1}, "devices", "2 of them cannot share 1 rows"),
        (PLAIN, {"processes": 2, "scratch": {"norm": "batch"}}, "scratch.norm", "BatchNorm counts"),
    ],
)
def test_what_cannot_be_is_said(machine, values, field, said):
    wrong = several.refusals({"batch_size": 8, **values}, "scratch", machine)
    assert said in wrong[field]


def test_only_what_learns_whole_is_split():
    asked = {"batch_size": 8, "processes": 2, "shards": True, "optimizer": "adamw"}
    assert several.refusals(asked, "full", PLAIN) == {}
    assert "Only a model of which everything learns" in several.refusals(asked, "lora", PLAIN)["shards"]
    assert "Preferences" in several.refusals({**asked, "learn_from": "preferences"}, "full", PLAIN)["shards"]
    # The contract refuses the same in a file, and its words find the field.
    with pytest.raises(ValueError, match="shards is for methods in which all weights learn"):
        RecipeSpec.model_validate({**a_recipe().model_dump(), **FILE, "processes": 2, "shards": True})
    with pytest.raises(ValidationError) as refused:
        a_recipe(processes=2, devices=["0"])
    assert list(compose.sentences(refused.value)) == ["processes"]


FILE = {"method": "lora", "base_source": "starter", "scratch": None}


def test_a_recipe_of_another_machine_comes_without_its_devices():
    asked = {"devices": ["0", "5"], "shards": True, "epochs": 3.0}
    assert several.without_strangers(asked, TWO) == {"epochs": 3.0}
    assert several.without_strangers({**asked, "devices": ["0", "1"]}, TWO)["devices"] == ["0", "1"]
    assert several.without_strangers({"processes": 8}, PLAIN) == {}
    assert several.without_strangers({"processes": 2, "shards": True}, PLAIN) == {"processes": 2, "shards": True}


def test_memory_is_of_each_card_and_of_all_processes():
    material, one = rows(500), spec("full", MEDIUM, rows(500))
    alone = estimate.memory_bytes(one, MEDIUM, material, PLAIN)
    two = one.model_copy(update={"processes": 2})
    assert estimate.memory_bytes(two, MEDIUM, material, PLAIN) == 2 * alone
    split = estimate.memory_bytes(two.model_copy(update={"shards": True}), MEDIUM, material, PLAIN)
    assert 2 * alone - split == pytest.approx(16 * MEDIUM.parameters)
    cards = one.model_copy(update={"devices": ["0", "1"]})
    on_one = estimate.memory_bytes(one, MEDIUM, material, TWO)
    assert estimate.memory_bytes(cards, MEDIUM, material, TWO) == on_one
    halved = estimate.memory_bytes(cards.model_copy(update={"shards": True}), MEDIUM, material, TWO)
    assert on_one - halved == pytest.approx(8 * MEDIUM.parameters)


def test_cards_are_those_that_cuda_shows():
    assert [card.id for card in cards_of(TOLD, None)] == ["0", "1"]
    assert [(card.id, card.name) for card in cards_of(TOLD, "GPU-bb, 0")] == [
        ("GPU-bb", "Card of 48"),
        ("0", "Card of 24"),
    ]
    assert cards_of(TOLD, "") == ()
