"""Every data page in every state: clean for axe, no sideways scroll, usable without scripts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.core.db import reading, transaction
from app.datasets import plans, service, versions
from app.datasets.models import CleaningPlan, SourceFile
from tests.e2e.conftest import Site, axe_findings, is_scrolling_sideways
from tests.visitors import make_project
from worker.tasks import datasets as tasks

pytestmark = pytest.mark.e2e
MESSY = Path(__file__).parents[1] / "fixtures" / "messy_made"


def work() -> None:
    """Read what is queued and prepare the rows."""
    with reading() as session:
        files = session.scalars(select(SourceFile.id).where(SourceFile.state == "queued")).all()
    for file_id in files:
        tasks.import_file(file_id)
    with reading() as session:
        waiting = session.scalars(select(CleaningPlan.id).where(CleaningPlan.state == "queued")).all()
    for plan_id in waiting:
        tasks.prepare(plan_id)


def paste(site: Site, project_id: str, text: str, name: str) -> str:
    with transaction() as session:
        return service.add_text(session, site.person.actor, project_id=project_id, text=text, name=name).id


@pytest.fixture
def pages(site: Site) -> list[str]:
    """The addresses of a project with nothing, of one with everything, and of one with everything that can go wrong."""
    actor = site.person.actor
    empty = make_project(site.person.workspace_id, "Empty")
    full = make_project(site.person.workspace_id, "Grandma's kitchen")
    broken = make_project(site.person.workspace_id, "Broken")
    with transaction() as session:
        service.add_sample(session, actor, project_id=full, key="support")
    messy = paste(site, full, (MESSY / "broken_lines.jsonl").read_text(), "broken_lines.jsonl")
    refused = paste(site, broken, "<!doctype html><p>no</p>", "page.csv")
    unsure = paste(site, broken, '{"a": "x y z", "b": 1, "c": "words of a longer text"}\n' * 30, "unsure.jsonl")
    work()
    with transaction() as session:
        plans.apply_steps(session, actor, full, ["whitespace"])
    work()
    with transaction() as session:
        version = versions.freeze(session, actor, full)
    tasks.freeze(version.id)
    paste(site, broken, "question,answer\nwaiting,to be read\n", "waiting.csv")
    addresses = [f"/projects/{project}/{stage}" for project in (empty, full, broken) for stage in ("data", "clean")]
    addresses += [
        f"/files/{messy}",
        f"/files/{messy}/findings?code=json.invalid",
        f"/files/{refused}",
        f"/files/{unsure}",
    ]
    addresses += [f"/projects/{full}/clean/step?name=whitespace", f"/versions/{version.id}"]
    return [*addresses, f"/projects/{full}/data?q=zebrafish"]


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_every_page_is_clean(
    pages: list[str], visit: Callable[..., Any], theme: str, width: int, tmp_path: Path
) -> None:
    page = visit(pages[0], theme=theme, width=width, bypass_csp=True)
    for number, path in enumerate(pages):
        page.goto(path)
        page.get_by_role("heading", level=1).wait_for()
        page.screenshot(path=tmp_path / f"{number}.png", full_page=True)
        assert axe_findings(page) == [], path
        assert not is_scrolling_sideways(page), path


def test_bringing_a_file_without_scripts(site: Site, visit: Callable[..., Any]) -> None:
    project_id = make_project(site.person.workspace_id, "No scripts")
    page = visit(f"/projects/{project_id}/data", scripts=False)
    page.set_input_files("up-load input[type=file]", str(MESSY / "utf8.csv"))
    page.get_by_role("button", name="Upload files").click()
    page.get_by_text("Waiting to be read").wait_for()
    work()
    page.goto(f"/projects/{project_id}/data")
    page.get_by_text("Rows 1 to 20 of 600").wait_for()
    page.get_by_role("link", name="Look through all rows").click()
    page.get_by_text("Rows 1 to 100 of 600").wait_for()
    page.get_by_role("link", name="Next", exact=True).click()
    page.get_by_text("Rows 101 to 200 of 600").wait_for()
