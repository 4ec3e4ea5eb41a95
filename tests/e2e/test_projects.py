"""From an idea to a written objective, with scripts and without."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from app.core.db import reading
from app.projects.models import Objective
from tests.e2e.conftest import Site, axe_findings, is_scrolling_sideways
from tests.visitors import make_project

pytestmark = pytest.mark.e2e


def saved(project_id: str) -> Objective:
    with reading() as session:
        found = session.get(Objective, project_id)
        assert found is not None
        return found


def id_in(url: str) -> str:
    return url.split("/projects/")[1].split("/")[0]


def test_from_a_template_to_an_objective_of_ones_own(visit: Callable[..., Any], site: Site) -> None:
    page = visit("/projects")
    page.get_by_role("link", name="Legal document analysis").click()
    page.get_by_label("What do you call it?").fill("Contract reader")
    assert page.get_by_role("radio", name="Legal document analysis").is_checked()
    page.get_by_role("button", name="Create project").click()
    page.get_by_role("heading", level=1, name="Objective").wait_for()
    page.get_by_text("It is no legal advice").wait_for()
    page.get_by_label("In which tone?").fill("Like a patient colleague.")
    page.locator("#preview").get_by_text("Tone: Like a patient colleague.").wait_for()
    page.get_by_role("button", name="Add a rule").click()
    page.keyboard.type("Guess at a party’s intention.")
    page.get_by_role("button", name="Remove sample 1").click()
    page.get_by_role("button", name="Add a sample").click()
    page.keyboard.type("What is the notice period?")
    page.get_by_label("Ideal answer").last.fill("Ninety days.")
    page.get_by_role("button", name="Save objective").last.click()
    page.get_by_text("Objective saved").wait_for()
    objective = saved(id_in(page.url))
    assert objective.must_never[-1] == "Guess at a party’s intention."
    assert [sample["question"] for sample in objective.samples][-1] == "What is the notice period?"
    assert len(objective.samples) == 2
    assert "Tone: Like a patient colleague." in objective.system_prompt


def test_rows_can_be_added_and_removed_without_scripts(visit: Callable[..., Any], site: Site) -> None:
    project_id = make_project(site.person.workspace_id)
    page = visit(f"/projects/{project_id}/objective", scripts=False)
    page.get_by_role("button", name="Add a sample").click()
    page.get_by_label("Question").fill("How long do eggs boil?")
    page.get_by_role("button", name="Add a sample").click()
    page.get_by_label("Ideal answer").last.fill("Six minutes.")
    page.get_by_role("button", name="Save objective").last.click()
    error = page.locator("#samples-error")
    assert error.text_content().strip().startswith("One ideal answer has no question.")
    assert page.get_by_label("Ideal answer").last.input_value() == "Six minutes.", "what was typed stays"
    page.get_by_role("button", name="Remove sample 2").click()
    page.get_by_role("button", name="Save objective").last.click()
    assert [sample["question"] for sample in saved(project_id).samples] == ["How long do eggs boil?"]


def test_a_wrong_field_gets_the_focus_and_its_sentence(visit: Callable[..., Any], site: Site) -> None:
    page = visit("/projects/new")
    page.locator("#main form").evaluate("form => (form.noValidate = true)")
    page.get_by_role("button", name="Create project").click()
    field = page.get_by_label("What do you call it?")
    page.get_by_text("This is needed.").wait_for()
    assert field.get_attribute("aria-invalid") == "true"
    expect(field).to_be_focused()


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_pages_are_clean_in_both_themes_and_widths(
    visit: Callable[..., Any], site: Site, tmp_path: Any, theme: str, width: int
) -> None:
    project_id = make_project(site.person.workspace_id, template="medical")
    page = visit("/projects", theme=theme, width=width, bypass_csp=True)
    for path in ("", "/new", f"/{project_id}", f"/{project_id}/objective", f"/{project_id}/refine", "/none"):
        page.goto(f"{site.url}/projects{path}")
        page.screenshot(path=tmp_path / f"{path.replace('/', '-')}-{theme}-{width}.png", full_page=True)
        assert not is_scrolling_sideways(page), path
        assert axe_findings(page) == [], path
