"""The main job, whole, on the whole stack in a real browser: from the first visit to an answer over the API."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.conftest import ROOT, LiveServer, start_stack, stop_stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

MATERIAL = ROOT / "app" / "datasets" / "samples" / "support-messages.csv"
PICTURES = ROOT / "test-results" / "walk"
LABELS = {"card arrival", "top up failed", "exchange rate", "change pin", "age limit", "terminate account"}
PATIENCE_MS = 300_000


class Walker:
    """A person with a browser: takes a picture of each page at a desk (light, dark) and on a phone."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(60_000)
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        for theme in ("light", "dark"):
            self.page.emulate_media(color_scheme=theme)
            self.page.screenshot(path=PICTURES / f"{name}-{theme}.png")
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size({"width": 390, "height": 844})
        self.page.screenshot(path=PICTURES / f"{name}-phone.png")
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} scrolls sideways on a phone by {wide} pixels"
        self.page.set_viewport_size({"width": 1280, "height": 900})

    def press(self, name: str | re.Pattern[str]) -> None:
        self.page.get_by_role("button", name=name).first.click()


@pytest.fixture
def fresh_server() -> Iterator[LiveServer]:
    """A stack that nobody has visited yet."""
    folder = Path(tempfile.mkdtemp(prefix="gptb-walk-"))
    child, server = start_stack(folder / "home")
    try:
        yield server
    finally:
        stop_stack(child)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def walker(browser: Any, fresh_server: LiveServer) -> Any:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=fresh_server.url)
    walker = Walker(context.new_page())
    yield walker
    context.close()
    assert walker.complaints == []


def test_from_the_first_visit_to_an_answer_over_the_api(walker: Walker, fresh_server: LiveServer) -> None:
    page = walker.page

    # First visit: the owner's account with the token of the console.
    page.goto("/")
    page.get_by_label("Setup token").fill(fresh_server.setup_token)
    page.locator("input[name=name]").fill("Ada")
    page.locator("input[name=email]").fill("ada@example.org")
    page.locator("input[name=password]").fill("tulip engine harbour 7")
    walker.picture("01-first-visit")
    page.locator("main button[type=submit]").click()
    page.wait_for_url("**/welcome")
    walker.picture("02-welcome")
    page.goto("/system")
    walker.picture("03-system")

    # Project and objective, from a template.
    page.goto("/projects/new?template=classification")
    page.locator("input[name=name]").fill("Sort my mail")
    walker.picture("04-new-project")
    walker.press(re.compile("Create"))
    page.wait_for_url("**/objective")
    project_url = page.url.removesuffix("/objective")
    page.locator("textarea[name=task]").fill("Name what a customer's message is about.")
    walker.picture("05-objective")
    walker.press(re.compile("next: data"))
    page.wait_for_url("**/data")

    # Data: a real file, detected, shown.
    page.locator("input[type=file]").set_input_files(MATERIAL)
    page.get_by_text("1,608 rows").first.wait_for(timeout=PATIENCE_MS)
    walker.picture("06-data")

    # Clean, and freeze a version.
    page.goto(project_url + "/clean")
    walker.press("Tidy them")
    page.get_by_role("button", name=re.compile("Undo")).first.wait_for(timeout=PATIENCE_MS)
    walker.picture("07-clean")
    walker.press(re.compile("Freeze version"))
    page.wait_for_url("**/versions/*")
    page.get_by_text(re.compile("Training")).first.wait_for()
    walker.picture("08-version")

    # Recipe: what is proposed, made short, and started.
    _wait_for_version(page, project_url)
    page.get_by_text("Every parameter").click()
    page.locator("input[name=max_steps]").fill("60")
    walker.picture("09-recipe")
    walker.press(re.compile("Start training"))
    page.wait_for_url("**/runs/*", timeout=PATIENCE_MS)
    run_url = page.url

    # Run: live, without reload, to its end; the whole curve after a reload.
    walker.picture("10-run-begins")
    assert page.get_by_text("Tell me when it ends").count() == 1
    page.get_by_role("heading", name="Your model is ready").wait_for(timeout=PATIENCE_MS)
    page.get_by_text("Tell me when it ends").wait_for(state="detached")
    walker.picture("11-run-ends")
    points = page.request.get(run_url + "/metrics.json").json()
    assert points["step"] == sorted(set(points["step"]))
    assert points["step"][-1] == 60
    assert points["loss"][-1] < points["loss"][0] / 2
    assert points["val"]
    page.reload()
    page.locator("live-chart canvas").first.wait_for()
    assert page.request.get(run_url + "/metrics.json").json() == points

    # Evaluate: base against tuned, on rows that were kept for the test.
    page.goto(project_url + "/evaluate")
    walker.picture("12-evaluate")
    walker.press(re.compile("^(Evaluate|Start)"))
    page.wait_for_url("**/evaluations/*")
    page.locator("#scores").wait_for(timeout=PATIENCE_MS)
    walker.picture("13-evaluation")
    assert "Exact match" in page.locator("#scores").inner_text()

    # Chat: the tuned model and its base, side by side.
    page.goto(project_url + "/chat")
    page.get_by_label("Compare with").select_option(index=1)
    page.locator("#composer-box").fill("Where is my new card? It has not arrived")
    page.keyboard.press("Enter")
    page.wait_for_url("**/chats/*")
    page.get_by_role("button", name="Good answer").nth(1).wait_for(timeout=PATIENCE_MS)
    answers = page.locator("#chat-list .chat-text")
    assert answers.count() == 2
    assert answers.first.inner_text().strip() in LABELS
    page.get_by_role("button", name="Good answer").first.click()
    page.locator("[aria-pressed=true]").first.wait_for()
    walker.picture("14-chat")

    # Publish: a key, shown once, and the official client.
    page.goto(project_url + "/deploy")
    page.locator("form[action$='/deploy/keys'] input[name=name]").fill("inbox")
    walker.press("Make key")
    key = page.locator("#new-key code").first.inner_text().strip()
    walker.picture("15-deploy")
    with OpenAI(api_key=key, base_url=fresh_server.url + "/v1", max_retries=5) as client:
        name = client.models.list().data[0].id
        question = [{"role": "user", "content": "How do I change my PIN?"}]
        answer = client.chat.completions.create(model=name, messages=question, temperature=0)  # type: ignore[arg-type]
        pieces = client.chat.completions.create(model=name, messages=question, temperature=0, stream=True)  # type: ignore[call-overload]
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert answer.choices[0].message.content
    assert streamed == answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    page.goto(project_url + "/deploy")
    assert key not in page.content()

    # Everything is on the overview.
    page.goto(project_url)
    walker.picture("16-overview")
    page.goto("/projects")
    walker.picture("17-projects")


def _wait_for_version(page: Any, project_url: str) -> None:
    """Freezing goes on in the background: the recipe page opens up once it is done."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < end:
        page.goto(project_url + "/recipe")
        if page.get_by_text("Every parameter").count():
            return
        time.sleep(1)
    raise AssertionError("no frozen version on the recipe page")
