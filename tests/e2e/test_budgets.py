"""What a first visit costs: bytes over the wire with fonts, requests, nodes. Cold caches, real Chromium."""

from collections.abc import Callable
from typing import Any

import pytest

from app.core.db import transaction
from app.runs.models import MetricPoint, Run
from tests.e2e.conftest import Site
from tests.factories import a_recipe, a_version
from tests.visitors import make_project

pytestmark = pytest.mark.e2e


@pytest.fixture
def places(site: Site) -> dict[str, str]:
    """A project with a finished run of two thousand steps, and the addresses of its pages."""
    project_id = make_project(site.person.workspace_id, template="tutor")
    with transaction() as session:
        version = a_version(session, project_id)
        run = Run(
            project_id=project_id, workspace_id=site.person.workspace_id, number=1, name="Warm and chatty",
            version_id=version.id, recipe=a_recipe().model_dump(mode="json"), state="cancelled", step=2000,
            total_steps=4000,
        )  # fmt: skip
        session.add(run)
        session.flush()
        for step in range(1, 2001):
            session.add(MetricPoint(run_id=run.id, name="loss", step=step, value=1.5 + 300 / (100 + step)))
            if step % 100 == 0:
                session.add(
                    MetricPoint(run_id=run.id, name="validation_loss", step=step, value=1.6 + 300 / (100 + step))
                )
        root = f"/projects/{project_id}"
        return {
            "projects": "/projects", "new": "/projects/new", "overview": root, "objective": f"{root}/objective",
            "data": f"{root}/data", "run": f"/runs/{run.id}",
        }  # fmt: skip


@pytest.mark.parametrize("name", ["projects", "new", "overview", "objective", "data", "run"])
def test_a_first_visit_stays_small(visit: Callable[..., Any], places: dict[str, str], name: str) -> None:
    page = visit("/health")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: dict[str, float] = {}
    names: dict[str, str] = {}
    devtools.on("Network.responseReceived", lambda e: names.update({e["requestId"]: e["response"]["url"]}))
    devtools.on("Network.loadingFinished", lambda e: sizes.update({e["requestId"]: e["encodedDataLength"]}))
    page.goto(places[name])
    if name == "run":
        page.locator("live-chart[data-ready]").wait_for()
    page.evaluate("document.fonts.ready")
    detail = {names.get(key, key).rsplit("/", 1)[-1]: round(size) for key, size in sizes.items()}
    assert sum(sizes.values()) <= (130_000 if name == "run" else 100_000), detail
    # The icon of the page before may still come, and has no name here, and so may this one's for a second time.
    assert len({names[key] for key in sizes if key in names}) <= (18 if name == "run" else 11), detail
    assert page.evaluate("document.querySelectorAll('*').length") <= 1500
