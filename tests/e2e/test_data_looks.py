"""Every data page in every state: clean for axe, no sideways scroll, usable without scripts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from app.core.db import reading, transaction
from app.datasets import plans, row_changes, service, uploads, versions
from app.datasets.combining import service as combining
from app.datasets.mapping import Mapping
from app.datasets.models import CleaningPlan, SourceFile
from app.drafting.models import Draft, Drafting
from tests.e2e.conftest import AXE_RULES, Site, axe_findings, is_scrolling_sideways
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


LONG = "My parcel from the shop in Leeds has been on its way for two weeks and nobody on the phone can say where it is"


def kitchen() -> str:
    """Rows with a near copy, a contradiction, and a text that no small model reads at once."""
    rows = [
        {"question": LONG, "answer": "I am sorry. I ask the driver and write to you before the end of the day."},
        {"question": f"{LONG} today", "answer": "I am sorry. I ask the driver and write to you before the end of day."},
        {"question": "When is the soup served in the small kitchen upstairs?", "answer": "At noon."},
        {"question": "When is the soup served in the small kitchen upstairs?", "answer": "At six in the evening."},
    ]
    return "\n".join(map(json.dumps, rows))


def drafted(site: Site, project_id: str, file_id: str) -> str:
    """A drafting with a draft of each state; its id."""
    with transaction() as session:
        row = Drafting(
            project_id=project_id, workspace_id=site.person.workspace_id, file_id=file_id, target="endpoint",
            size_tokens=64, overlap_tokens=8, pairs=1, state="succeeded", asked=3, done=3, total=3,
        )  # fmt: skip
        session.add(row)
        session.flush()
        common = {"drafting_id": row.id, "document": "handbook.pdf", "place": "page 4", "heading": "Stove"}
        passage = "Light the stove with a match. Wait two minutes."
        for number, (question, state) in enumerate((("How is it lit?", "open"), ("", "unusable"))):
            session.add(
                Draft(**common, chunk=number, passage=passage, question=question, answer="With a match.", state=state)
            )
        return row.id


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
    paste(site, full, kitchen(), "kitchen.jsonl")
    texts = paste(site, full, json.dumps({"text": "The kettle boils. She pours the tea.\n\n" * 60}), "texts.jsonl")
    refused = paste(site, broken, "<!doctype html><p>no</p>", "page.csv")
    unsure = paste(site, broken, '{"a": "x y z", "b": 1, "c": "words of a longer text"}\n' * 30, "unsure.jsonl")
    work()
    with transaction() as session:
        service.set_mapping(session, actor, texts, Mapping(shape="text", text="{text}"))
        plans.apply_steps(session, actor, full, ["whitespace", "contradictions"])
        plans.apply_steps(session, actor, full, ["tokens"], {"texts": "split", "limit": 200})
    work()
    with transaction() as session:
        version = versions.freeze(session, actor, full)
    tasks.freeze(version.id)
    with transaction() as session:
        other = combining.combine(session, actor, version.id, operation="sample", others=[], rows=20)
    tasks.freeze(other.id)
    with transaction() as session:
        comparison = combining.compare(session, actor, version.id, other.id)
        row_changes.change_rows(session, actor, full, keys=np.array([7], np.uint64), kind="delete")
        upload = uploads.create(session, actor, project_id=full, filename="half.csv", size_bytes=2_000_000)
        uploads.advance(session, upload.id, 500_000)
    tasks.compare(comparison.id)
    paste(site, broken, "question,answer\nwaiting,to be read\n", "waiting.csv")
    addresses = [f"/projects/{project}/{stage}" for project in (empty, full, broken) for stage in ("data", "clean")]
    addresses += [
        f"/files/{messy}",
        f"/files/{messy}/findings?code=json.invalid",
        f"/files/{refused}",
        f"/files/{unsure}",
    ]
    names = ("whitespace", "near", "tokens", "contradictions")
    addresses += [f"/projects/{full}/clean/step?name={name}" for name in names]
    addresses += [f"/projects/{full}/{page}" for page in ("statistics", "contradictions", "rows/changes", "sources")]
    addresses += [f"/versions/{version.id}", f"/comparisons/{comparison.id}", f"/sources/{texts}"]
    addresses += [f"/draftings/{drafted(site, full, texts)}", f"/draftings/{drafted(site, full, messy)}?state=unusable"]
    return [*addresses, f"/projects/{full}/data?q=zebrafish"]


@pytest.mark.timeout(600)
def test_every_page_is_clean(pages: list[str], visit: Callable[..., Any]) -> None:
    """Each page is loaded once: whole by day on a desk, and its colours and sizes by night on a phone."""
    wrong: list[tuple[str, str, Any]] = []
    page = visit(pages[0], bypass_csp=True)
    for path in pages:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(path)
        page.get_by_role("heading", level=1).wait_for()
        for theme, width, rules in (("light", 1440, AXE_RULES), ("dark", 390, ("color-contrast", "target-size"))):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 900})
            wrong += [(path, theme, finding) for finding in axe_findings(page, rules)]
            wrong += [(path, theme, "it scrolls sideways")] if is_scrolling_sideways(page) else []
    assert wrong == []


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
