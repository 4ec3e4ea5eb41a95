"""Chat in a real browser with a real model: text as it is said, stop, try again, compare, rate, reload."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect

from app.contracts.room import Room
from app.core.db import transaction
from app.inference import client
from app.projects.models import Objective
from tests import serving, visitors
from tests.e2e.conftest import Site, axe_findings, is_scrolling_sideways

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("models")
    return serving.endless_model(made / "tuned"), serving.endless_model(made / "base", seed=1)


@pytest.fixture(scope="module")
def model_server() -> Iterator[serving.ModelServer]:
    with serving.model_server() as server:
        yield server


@pytest.fixture
def app_of_site(
    database: Path, broker: object, model_server: serving.ModelServer, monkeypatch: pytest.MonkeyPatch
) -> FastAPI:
    from app.core.config import get_settings
    from app.main import create_app

    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(model_server.socket))
    get_settings.cache_clear()
    return create_app()


@pytest.fixture
def project_id(site: Site, folders: tuple[Path, Path]) -> str:
    project_id = visitors.make_project(site.person.workspace_id, "Grandma’s kitchen")
    serving.a_trained_model(site.person.workspace_id, project_id, *folders)
    with transaction() as session:
        session.get_one(Objective, project_id).samples = [{"question": "How do I make soup?", "answer": "Slowly."}]
    return project_id


def _predictable(page: Any, longest: int) -> None:
    page.get_by_label("Creativity").fill("0")
    page.get_by_label("Longest reply").fill(str(longest))


def test_an_answer_that_waits_for_training_says_so_and_begins_by_itself(
    visit: Callable[..., Any], project_id: str
) -> None:
    client.hold_room(Room(attempt_id="theirs", held_bytes=10**15, left_s=720, lapses_s=600))
    try:
        page = visit(f"/projects/{project_id}/chat", bypass_csp=True)
        _predictable(page, 20)
        page.get_by_label("Your message").fill("Where is my card?")
        page.keyboard.press("Enter")
        said = page.locator(".chat-waiting").filter(has_text="Training holds the memory until about")
        expect(said).to_be_visible()
        expect(page.get_by_role("status").filter(has_text="Training holds the memory until about")).to_have_count(1)
        page.reload()
        expect(said).to_be_visible()
        expect(page.get_by_role("button", name="Stop")).to_have_count(2)
        assert axe_findings(page) == []
    finally:
        client.end_room("theirs")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(said).to_have_count(0)
    expect(page.locator(".chat-text")).not_to_be_empty()


def test_an_answer_streams_and_outlives_a_reload(
    visit: Callable[..., Any], project_id: str, model_server: serving.ModelServer
) -> None:
    page = visit(f"/projects/{project_id}/chat")
    expect(page.get_by_role("button", name="How do I make soup?")).to_be_visible()
    _predictable(page, 3000)
    page.get_by_label("Your message").fill("Where is my card?")
    page.keyboard.press("Enter")
    answer = page.locator("article.chat-reply")
    text = answer.locator(".chat-text")
    expect(text).not_to_be_empty()
    with model_server.held():
        expect(text).to_have_attribute("aria-busy", "true")
        early = len(text.inner_text())
        page.reload()
        expect(text).not_to_be_empty()
    answer.get_by_role("button", name="Try again").wait_for(timeout=60_000)
    whole = text.inner_text()
    assert len(whole) > early, "it went on while the page was away"
    page.reload()
    assert text.inner_text() == whole
    assert page.locator("[hx-sse\\:connect]").count() == 0


def test_stop_try_again_rate_and_ask_on(
    visit: Callable[..., Any], project_id: str, model_server: serving.ModelServer
) -> None:
    page = visit(f"/projects/{project_id}/chat")
    _predictable(page, 4000)
    page.get_by_role("button", name="How do I make soup?").click()
    answer = page.locator("article.chat-reply")
    expect(answer.locator(".chat-text")).not_to_be_empty()
    with model_server.held():
        expect(page.get_by_role("button", name="Send")).to_be_hidden()
        page.locator("chat-composer").get_by_role("button", name="Stop").click()
    answer.get_by_text("Stopped by you.").wait_for()
    _predictable(page, 12)
    page.get_by_label("Your message").fill("And then?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Try again")).to_have_count(2)
    expect(page.locator(".chat-user")).to_have_text(["How do I make soup?", "And then?"])
    expect(page.get_by_label("Your message")).to_have_value("")
    last = answer.last
    last.get_by_role("button", name="Bad answer").click()
    last.get_by_label("Why?").fill("Not about soup")
    last.get_by_role("button", name="Save note").click()
    last.get_by_text("Saved").wait_for()
    last.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("button", name="Try again")).to_have_count(2)
    assert page.locator(".chat-user").count() == 2


def test_base_and_tuned_side_by_side(visit: Callable[..., Any], project_id: str) -> None:
    page = visit(f"/projects/{project_id}/chat")
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_label("Compare with")).to_have_value(re.compile("base:"))
    _predictable(page, 30)
    expect(page.locator("range-word output")).to_have_text("Predictable")
    page.get_by_label("Your message").fill("Where is my card?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Try again")).to_have_count(2)
    pair = page.locator(".chat-pair article")
    assert pair.first.bounding_box()["y"] == pair.last.bounding_box()["y"]
    assert pair.first.locator(".chat-text").inner_text() != pair.last.locator(".chat-text").inner_text()


def test_without_scripts_a_question_is_answered_too(visit: Callable[..., Any], project_id: str) -> None:
    page = visit(f"/projects/{project_id}/chat", scripts=False)
    page.get_by_label("Longest reply").fill("5")
    page.get_by_label("Your message").fill("Where is my card?")
    page.get_by_role("button", name="Send").click()
    page.wait_for_url("**/chats/*")
    for _ in range(50):
        if page.get_by_role("button", name="Try again").count():
            break
        page.reload()
    assert page.get_by_role("button", name="Try again").count() == 1


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_the_page_is_usable_by_everybody(
    visit: Callable[..., Any], project_id: str, theme: str, width: int, tmp_path: Path
) -> None:
    page = visit(f"/projects/{project_id}/chat", theme=theme, width=width, bypass_csp=True)
    assert not axe_findings(page)
    page.get_by_label("Your message").fill("Where is my card?")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Try again").wait_for(timeout=30_000)
    assert not axe_findings(page)
    assert not is_scrolling_sideways(page)
    page.screenshot(path=tmp_path / f"chat-{theme}-{width}.png")
