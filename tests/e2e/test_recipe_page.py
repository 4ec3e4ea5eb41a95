"""The recipe page in a browser: its figures, its cards, and what a short page looks like."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from app.core.db import transaction
from tests.e2e.conftest import Site
from tests.factories import a_version
from tests.visitors import make_project

pytestmark = pytest.mark.e2e


@pytest.fixture
def address(site: Site) -> str:
    project_id = make_project(site.person.workspace_id)
    with transaction() as session:
        a_version(session, project_id, rows=64)
    return f"/projects/{project_id}/recipe"


def test_figures_say_when_they_are_older_than_what_was_typed(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    told = page.get_by_text("These figures are older than your changes.")
    page.locator("#expert > summary").click()
    passes = page.locator("#field-epochs")
    expect(told).to_be_hidden()
    before = passes.input_value()
    passes.fill("7")
    expect(told).to_be_visible()
    passes.fill(before)
    expect(told).to_be_hidden()
    page.get_by_label("Name of this run").fill("Warm")
    expect(told).to_be_hidden()
    passes.fill("7")
    page.locator("#expect").get_by_role("button", name="Use these values").click()
    page.get_by_text("You changed: Passes").wait_for()
    expect(told).to_be_hidden()
    expect(page.locator("#field-epochs")).to_have_value("7")


@pytest.mark.parametrize(("width", "rows"), [(1280, 1), (1120, 1), (820, 1), (390, 3)])
def test_the_three_presets_leave_no_hole(visit: Callable[..., Any], address: str, width: int, rows: int) -> None:
    page = visit(address, width=width)
    tops = page.locator("#presets .recipe-pick").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == rows
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_short_page_is_no_longer_than_its_window(visit: Callable[..., Any], address: str) -> None:
    for width in (1440, 390):
        page = visit(address.replace("/recipe", "/chat"), width=width)
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight"), width
