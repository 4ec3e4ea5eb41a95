"""Data in a real browser on the whole stack: drop, map, clean, split, freeze; an upload that survives a reload."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.core import config, db
from app.core.db import reading
from app.datasets.models import SourceFile
from tests.conftest import LiveServer
from tests.visitors import Person, make_person, make_project

pytestmark = pytest.mark.e2e
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def ana(live_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Person, str]]:
    """A person with a project, written into the running stack's own database."""
    monkeypatch.setenv("GPT_BUILDER_HOME", str(live_server.home))
    config.get_settings.cache_clear()
    db.forget_engine()
    person = make_person("Ana")
    yield person, make_project(person.workspace_id, "Grandma's kitchen")
    db.forget_engine()
    config.get_settings.cache_clear()


@pytest.fixture
def page(ana: tuple[Person, str], live_server: LiveServer, browser_page: Any) -> Iterator[Any]:
    """A signed-in page; any message on the console fails the test."""
    said: list[str] = []
    browser_page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    browser_page.on("pageerror", lambda error: said.append(str(error)))
    browser_page.context.add_cookies([{"name": "sid", "value": ana[0].cookie, "url": live_server.url}])
    browser_page.goto(f"{live_server.url}/projects/{ana[1]}/data")
    yield browser_page
    # Requests that a test breaks off are errors of its own making.
    assert not [text for text in said if "ERR_FAILED" not in text]


def test_from_a_dropped_file_to_a_frozen_version(page: Any, ana: tuple[Person, str]) -> None:
    page.get_by_role("heading", name="Data", exact=True).wait_for()
    content = (FIXTURES / "messy_made" / "ragged.csv").read_text()
    transfer = page.evaluate_handle(
        """(text) => { const t = new DataTransfer(); t.items.add(new File([text], "ragged.csv")); return t; }""",
        content,
    )
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": transfer})
    # The page fills itself: the file, what is wrong with it, its rows.
    page.get_by_text("31 rows without a question or an answer").wait_for(timeout=60_000)
    page.get_by_text("1 record did not fit and was set aside.").wait_for()
    page.get_by_text("Der Kuchen ist eine Lüge.").wait_for()

    page.locator("#files").get_by_role("link", name="ragged.csv").click()
    page.get_by_label("Each row is").select_option("label")
    page.get_by_label("Label", exact=True).wait_for()
    page.get_by_label("Each row is").select_option("pair")
    page.locator("#map-answer").wait_for()
    page.locator("#map-answer").select_option("answer")
    page.get_by_role("button", name="Use this mapping").click()
    page.wait_for_url("**/data")

    page.get_by_role("link", name="Clean", exact=False).first.click()
    page.get_by_role("button", name="Fix all").click()
    page.get_by_text("Done: Rows without a question or an answer").wait_for(timeout=60_000)
    page.get_by_text("Ready to train").wait_for(timeout=60_000)
    page.get_by_role("button", name="Undo the last change").click()
    page.get_by_role("button", name="Fix all").wait_for(timeout=60_000)
    page.get_by_role("link", name="fixes open").wait_for(timeout=60_000)
    page.get_by_role("button", name="Fix all").click()
    page.get_by_text("Ready to train").wait_for(timeout=60_000)

    page.get_by_label("For the test").fill("10")
    page.get_by_role("button", name="Save split").click()
    page.get_by_text("Split saved.").wait_for()
    page.get_by_role("button", name="Freeze version 1").click()
    page.get_by_text("Fingerprint").wait_for(timeout=60_000)
    page.get_by_text("No exact copy in training").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="JSONL").click()
    assert len(Path(download.value.path()).read_bytes().splitlines()) == 269


def test_a_file_chosen_before_the_script_has_come_is_sent(page: Any, ana: tuple[Person, str], tmp_path: Path) -> None:
    page.get_by_role("heading", name="Data", exact=True).wait_for()
    quick = tmp_path / "quick.txt"
    quick.write_text("Chosen by somebody quick.")
    held: list[Any] = []
    page.route("**/elements/up-load*.js*", lambda route: held.append(route))
    page.goto(page.url, wait_until="commit")
    page.set_input_files("up-load input[type=file]", str(quick))
    while not held:
        page.wait_for_timeout(50)
    held.pop().continue_()
    page.get_by_role("link", name="quick.txt", exact=True).wait_for()


def test_an_upload_survives_a_reload(page: Any, ana: tuple[Person, str], tmp_path: Path) -> None:
    page.get_by_role("heading", name="Data", exact=True).wait_for()
    big = tmp_path / "big.txt"
    big.write_bytes(b"A line of a long text that goes on and on.\n" * (40 * 2**20 // 43) + os.urandom(8).hex().encode())
    sent: list[int] = []

    def note(request: Any) -> None:
        if request.method == "PATCH":
            sent.append(int(request.headers["upload-offset"]))

    page.on("request", note)
    page.route("**/uploads/*", lambda route: route.abort() if len(sent) > 2 else route.continue_())
    page.set_input_files("up-load input[type=file]", str(big))
    page.locator(".files progress").first.wait_for()
    while len(sent) < 3:
        page.wait_for_timeout(100)
    page.unroute("**/uploads/*")
    # As in another browser: this one remembers nothing, the page lists what the server holds.
    page.evaluate("localStorage.clear()")
    page.reload()
    before = len(sent)
    half = page.locator("#unfinished .data-file")
    half.get_by_text("arrived").wait_for()
    other = tmp_path / "other.txt"
    other.write_text("another file")
    half.locator("input[type=file]").set_input_files(str(other))
    half.get_by_text("That is another file").wait_for()
    half.locator("input[type=file]").set_input_files(str(big))
    page.locator("#files").get_by_role("link", name="big.txt").wait_for(timeout=60_000)
    assert sent[before] > 0, "it went on from where it was"


def test_a_changed_file_of_the_same_name_and_size_begins_anew(
    page: Any, ana: tuple[Person, str], tmp_path: Path
) -> None:
    page.get_by_role("heading", name="Data", exact=True).wait_for()
    changing = tmp_path / "changing.txt"
    content = b"A line that goes on and on.\n" * (20 * 2**20 // 28)
    changing.write_bytes(content)
    sent: list[int] = []
    page.on("request", lambda r: sent.append(int(r.headers["upload-offset"])) if r.method == "PATCH" else None)
    page.route("**/uploads/*", lambda route: route.abort() if len(sent) > 1 else route.continue_())
    page.set_input_files("up-load input[type=file]", str(changing))
    while len(sent) < 2:
        page.wait_for_timeout(100)
    page.unroute("**/uploads/*")
    page.evaluate("localStorage.clear()")
    page.reload()
    half = page.locator("#unfinished .data-file")
    half.get_by_text("arrived").wait_for()
    # In the middle, where no piece is looked at: its age tells.
    changed = content[: 10 * 2**20] + b"CHANGED" + content[10 * 2**20 + 7 :]
    changing.write_bytes(changed)
    os.utime(changing, (1_700_000_000, 1_700_000_000))
    before = len(sent)
    half.locator("input[type=file]").set_input_files(str(changing))
    half.get_by_text("has changed since").wait_for(timeout=60_000)
    page.locator("#files").get_by_role("link", name="changing.txt").wait_for(timeout=60_000)
    assert sent[before] == 0, "it was joined to the old half"
    with reading() as session:
        file = session.scalars(select(SourceFile).where(SourceFile.filename == "changing.txt")).one()
    assert file.sha256 == hashlib.sha256(changed).hexdigest()
