"""Recipes under a name: saved, renamed, deleted and brought back, used in another project, and compared."""

from types import SimpleNamespace

import pytest
from sqlalchemy import select

from app.core.db import reading, transaction
from app.recipes import service as recipes
from app.recipes.models import RecipeDraft, SavedRecipe
from tests.factories import a_version
from tests.visitors import browser_of, make_person, make_project


@pytest.fixture
def place(app, database):
    """An editor's browser, and two projects of one workspace with a frozen version each."""
    person = make_person(role="editor")
    projects = [make_project(person.workspace_id, name) for name in ("Soups", "Cakes")]
    with transaction() as session:
        for project_id in projects:
            a_version(session, project_id, rows=64)
    return SimpleNamespace(browser=browser_of(app, person), person=person, soups=projects[0], cakes=projects[1])


def saved(place, name: str = "Slow and long", **values: str) -> str:
    """The recipe of “Soups” with these values, saved; its id."""
    with transaction() as session:
        recipes.save(session, place.person.actor, place.soups, values={"epochs": "7", **values})
    answer = place.browser.post(f"/projects/{place.soups}/recipes", data={"name": name})
    assert answer.status_code == 303
    with reading() as session:
        return session.scalars(select(SavedRecipe.id).where(SavedRecipe.name == name)).one()


def test_a_saved_recipe_is_used_in_another_project(place):
    saved_id = saved(place)
    shown = place.browser.get(f"/projects/{place.cakes}/recipes").text
    assert "Slow and long" in shown
    assert "Soups" in shown
    answer = place.browser.post(f"/projects/{place.cakes}/recipes/{saved_id}/use")
    assert answer.headers["location"] == f"/projects/{place.cakes}/recipe"
    with reading() as session:
        assert session.get_one(RecipeDraft, place.cakes).choices["overrides"]["epochs"] == 7.0
    assert "shows “Slow and long” now" in place.browser.get(answer.headers["location"]).text


def test_presets_stay_what_they_are_beside_a_recipe_taken_over(place):
    saved_id = saved(place, seed="77")
    address = f"/projects/{place.cakes}/recipe"
    place.browser.post(f"{address}s/{saved_id}/use")

    def shown(name: str) -> dict[str, float]:
        with reading() as session:
            page = recipes.page(session, place.person.actor, place.cakes)
        return {preset: getattr(one.recipe, name) for preset, one in page.presets.items()}

    passes = shown("epochs")
    assert passes["balanced"] == 7
    assert len(set(passes.values())) == 3, "quick and thorough have lengths of their own"
    assert set(shown("seed").values()) == {77}, "what no preset decides is the recipe's for all"
    for preset in ("quick", "balanced"):
        place.browser.post(address, data={"preset": preset})
    assert shown("epochs")["balanced"] == 7, "the way back leads to the recipe"
    with transaction() as session:
        recipes.save(session, place.person.actor, place.cakes, values={"epochs": "8"})
    assert set(shown("epochs").values()) == {8.0}, "a change by hand counts for every preset"


def test_a_base_that_is_not_here_stays_behind_and_is_named(place):
    saved_id = saved(place)
    with transaction() as session:
        kept = session.get_one(SavedRecipe, saved_id)
        kept.base, kept.base_name = {"source": "model", "ref": "x"}, "My soups"
    answer = place.browser.post(f"/projects/{place.cakes}/recipes/{saved_id}/use")
    assert "goes on from the model “My soups” of another project" in place.browser.get(answer.headers["location"]).text
    with reading() as session:
        assert session.get_one(RecipeDraft, place.cakes).choices.get("base", {}).get("source") != "model"


def test_names_are_told_apart_and_a_deletion_is_undone(place):
    first, second = saved(place), saved(place, "Quick")
    root = f"/projects/{place.soups}/recipes"
    for data in ({"name": " quick "}, {"name": "  "}):
        refused = place.browser.post(root, data=data)
        assert refused.status_code == 422
    assert "Give the recipe a name" in refused.text
    assert place.browser.post(f"{root}/{first}/name", data={"name": "QUICK"}).status_code == 422
    assert place.browser.post(f"{root}/{first}/name", data={"name": "Patient"}).status_code == 303
    place.browser.post(f"{root}/{second}/delete")
    shown = place.browser.get(root).text
    assert "Patient" in shown
    assert f"saved-{second}" not in shown
    place.browser.post(f"{root}/{second}/restore")
    assert f"saved-{second}" in place.browser.get(root).text


def test_two_recipes_are_compared_by_what_differs(place):
    one, two = saved(place), saved(place, "Gentle", learning_rate="0.00001")
    address = f"/projects/{place.soups}/recipes/compare?one=saved:{one}&two=saved:{two}"
    shown = place.browser.get(address).text
    assert "They differ in 1 setting" in shown
    assert "0.00001" in shown
    assert "Weight decay" not in shown
    assert "Weight decay" in place.browser.get(f"{address}&all=1").text
    same = place.browser.get(f"/projects/{place.soups}/recipes/compare?one=now&two=saved:{two}").text
    assert "alike in every setting" in same


def test_another_workspace_sees_none_of_it(app, place):
    saved_id = saved(place)
    stranger = make_person("Zoe", "editor")
    theirs = make_project(stranger.workspace_id)
    with transaction() as session:
        a_version(session, theirs, rows=64)
    browser = browser_of(app, stranger)
    assert "Slow and long" not in browser.get(f"/projects/{theirs}/recipes").text
    assert browser.post(f"/projects/{theirs}/recipes/{saved_id}/use").status_code == 404
    assert browser.get(f"/projects/{theirs}/recipes/compare?one=now&two=saved:{saved_id}").status_code == 404
