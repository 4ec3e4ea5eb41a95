"""The frame of every page: page changes without a reload, focus, keyboard, finder, theme, phone's bar, toasts."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Site
from tests.visitors import make_project

pytestmark = pytest.mark.e2e


@pytest.fixture
def project_id(site: Site) -> str:
    return make_project(site.person.workspace_id, "Grandma’s kitchen")


def test_a_page_change_swaps_the_main_area_only(visit: Callable[..., Any], project_id: str) -> None:
    page = visit("/projects")
    page.evaluate("window.stillHere = true")
    page.get_by_role("link", name="Grandma’s kitchen").first.click()
    page.get_by_role("heading", level=1, name="Grandma’s kitchen").wait_for()
    assert page.evaluate("window.stillHere") is True
    expect(page).to_have_title("Grandma’s kitchen · GPT Builder")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    # The rail came with it: the journey of this project, with its own place marked.
    assert page.locator("#rail .stage").count() == 10
    page.locator("#rail .stage", has_text="Objective").click()
    page.get_by_role("heading", level=1, name="Objective").wait_for()
    assert page.locator("#rail [aria-current=page]").text_content().strip().startswith("Objective")
    page.go_back()
    page.get_by_role("heading", level=1, name="Grandma’s kitchen").wait_for()
    assert page.url.endswith(f"/projects/{project_id}")


def test_twenty_page_changes_leave_one_page_behind(visit: Callable[..., Any], project_id: str) -> None:
    page = visit(f"/projects/{project_id}")

    def nodes() -> int:
        return int(page.evaluate("document.querySelectorAll('*').length"))

    before = nodes()
    for _ in range(10):
        page.locator("#rail .stage", has_text="Objective").click()
        page.locator("h1", has_text="Objective").wait_for()
        page.locator("#rail .rail-link", has_text="Overview").click()
        page.locator("h1", has_text="Grandma’s kitchen").wait_for()
    assert nodes() <= before + 5


def test_the_keyboard_goes_everywhere(visit: Callable[..., Any], project_id: str) -> None:
    page = visit(f"/projects/{project_id}/objective")
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.get_by_role("heading", level=1, name="Grandma’s kitchen").wait_for()
    page.keyboard.press("/")
    finder = page.get_by_role("dialog", name="Find a page or a project")
    finder.wait_for()
    page.keyboard.type("objec")
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="Objective").wait_for()
    finder.wait_for(state="hidden")
    page.keyboard.press("?")
    shortcuts = page.get_by_role("dialog", name="Keyboard")
    shortcuts.wait_for()
    shortcuts.get_by_role("checkbox").uncheck()
    shortcuts.get_by_role("button", name="Close").click()
    page.keyboard.press("/")
    assert not finder.is_visible(), "shortcuts can be switched off"
    page.keyboard.press("Control+k")
    finder.wait_for()


def test_shortcuts_are_off_while_typing(visit: Callable[..., Any], project_id: str) -> None:
    page = visit(f"/projects/{project_id}/objective")
    page.get_by_label("What should it do, in plain words?").fill("")
    page.keyboard.type("either/or? go")
    assert page.get_by_label("What should it do, in plain words?").input_value() == "either/or? go"
    assert not page.locator("dialog[open]").count()


def test_the_theme_is_in_the_page_before_it_is_painted(visit: Callable[..., Any], site: Site) -> None:
    page = visit("/projects", theme="light")
    page.locator("theme-switch summary").click()
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.locator("theme-switch summary").click()
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="Match device").click()
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).color").startswith("oklch(0.2")


def test_on_a_phone_the_bar_and_more_lead_everywhere(visit: Callable[..., Any], project_id: str) -> None:
    page = visit(f"/projects/{project_id}", width=390)
    assert not page.locator("#rail").is_visible()
    page.get_by_role("button", name="More").click()
    page.get_by_role("dialog", name="All pages").get_by_role("link", name="Refine").click()
    page.get_by_role("heading", level=1, name="Refine").wait_for()
    page.locator("#bottombar").get_by_role("link", name="Overview").click()
    page.get_by_role("heading", level=1, name="Grandma’s kitchen").wait_for()
    assert page.locator("#bottombar [aria-current=page]").text_content().strip() == "Overview"


def test_deleting_a_project_can_be_undone_from_the_toast(visit: Callable[..., Any], project_id: str) -> None:
    page = visit("/projects")
    page.locator("summary", has_text="More for Grandma’s kitchen").click()
    page.get_by_role("button", name="Delete project").click()
    toast = page.locator("toast-message", has_text="Deleted “Grandma’s kitchen”")
    toast.wait_for()
    assert page.get_by_role("heading", name="Grandma’s kitchen").count() == 0
    toast.get_by_role("button", name="Undo").click()
    page.get_by_role("heading", level=1, name="Grandma’s kitchen").wait_for()
    toast.wait_for(state="detached", timeout=4_000)  # it goes with its use, not by its clock of a minute


def test_a_link_into_nothing_shows_the_page_that_says_so(visit: Callable[..., Any], site: Site) -> None:
    page = visit("/projects")
    page.evaluate(
        """() => {
            const link = Object.assign(document.createElement("a"), { href: "/projects/nothing", textContent: "x" });
            document.querySelector("#main").append(link);
            htmx.process(link);
            link.click();
        }"""
    )
    page.get_by_role("heading", level=1, name="Not found").wait_for()
    assert page.url.endswith("/projects/nothing")


def test_offline_is_said_and_taken_back(visit: Callable[..., Any], site: Site) -> None:
    page = visit("/projects")
    page.context.set_offline(True)
    page.get_by_text("You are offline. Nothing is lost.").wait_for()
    page.context.set_offline(False)
    page.get_by_text("You are offline. Nothing is lost.").wait_for(state="hidden")
