"""Runs in a real browser: ticking survives the list's own refresh and leads to curves over one another."""

import pytest

from app.core.db import new_id, transaction
from app.runs import service
from app.runs.models import MetricPoint
from tests.e2e.conftest import is_scrolling_sideways
from tests.factories import a_recipe, a_version
from tests.visitors import make_project

pytestmark = pytest.mark.e2e


def test_small_curves_are_read_by_pointer_and_keys(site, visit) -> None:
    project_id = make_project(site.person.workspace_id)
    with transaction() as session:
        version_id = a_version(session, project_id).id
        run = service.start(
            session, site.person.actor, project_id=project_id, version_id=version_id, recipe=a_recipe(),
            client_request_id=new_id(),
        )  # fmt: skip
        run.state, run.step, run.total_steps = "cancelled", 5, 9
        for step in range(1, 6):
            session.add(MetricPoint(run_id=run.id, name="loss", step=step, value=2.0))
            session.add(MetricPoint(run_id=run.id, name="grad_norm", step=step, value=step / 2))
    page = visit(f"/runs/{run.id}")
    page.locator("live-chart[data-ready]").wait_for()
    figure = page.locator("figure", has_text="Gradient norm")
    figure.locator("svg").hover()
    figure.get_by_text("Step 3: 1.5").wait_for()
    page.mouse.move(0, 0)
    figure.get_by_text("0.5 to 2.5").wait_for()
    figure.locator("svg").focus()
    page.keyboard.press("End")
    figure.get_by_text("Step 5: 2.5").wait_for()
    page.keyboard.press("ArrowLeft")
    figure.get_by_text("Step 4: 2").wait_for()
    assert "Gradient norm, Step 4: 2" in page.locator("live-chart [data-status]").inner_text()
    page.keyboard.press("Escape")
    figure.get_by_text("0.5 to 2.5").wait_for()


def test_a_value_that_does_not_fit_keeps_its_dialog_before_the_page(site, visit) -> None:
    project_id = make_project(site.person.workspace_id)
    with transaction() as session:
        run = service.start(
            session, site.person.actor, project_id=project_id, version_id=a_version(session, project_id).id,
            recipe=a_recipe(), client_request_id=new_id(),
        )  # fmt: skip
        run.state = "running"
        address = f"/runs/{run.id}"
    page = visit(address)
    page.locator("summary", has_text="More for this run").click()
    page.get_by_role("button", name="Adjust").click()
    dialog = page.get_by_role("dialog", name="Change what?")
    dialog.get_by_label("New value").fill("abc")
    with page.expect_response("**/adjust"):
        dialog.get_by_role("button", name="Change it").click()
    dialog.get_by_text("Write a number.").wait_for()
    assert page.evaluate("document.querySelector('dialog[open]').matches(':modal')")
    assert page.evaluate("document.activeElement.name") == "value"
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


def test_ticked_runs_are_drawn_over_one_another(site, visit) -> None:
    project_id = make_project(site.person.workspace_id)
    with transaction() as session:
        version_id = a_version(session, project_id).id
        for lowest in (1.2, 1.5):
            run = service.start(
                session, site.person.actor, project_id=project_id, version_id=version_id,
                recipe=a_recipe(learning_rate=lowest / 1000), client_request_id=new_id(),
            )  # fmt: skip
            for step in range(1, 9):
                for name in ("loss", "validation_loss"):
                    session.add(MetricPoint(run_id=run.id, name=name, step=step, value=lowest + 1 / step))
    page = visit(f"/projects/{project_id}/runs")
    for tick in page.locator("input[name=run]").all():
        tick.check()
    with page.expect_response("**/runs/list"):
        pass  # the list refreshes itself while runs wait; what was ticked stays ticked
    assert page.locator("input[name=run]:checked").count() == 2
    page.get_by_role("button", name="Compare ticked runs").click()
    page.locator("compare-chart[data-ready] canvas").wait_for()
    assert page.get_by_role("row", name="Learning rate").inner_text().split("\t")[1:] == ["0.0015", "0.0012"]
    page.get_by_role("button", name="Run 1").click()
    assert page.get_by_role("button", name="Run 1").get_attribute("aria-pressed") == "true"
    assert not is_scrolling_sideways(page)


def test_no_line_runs_through_the_name_of_another(site, visit) -> None:
    project_id = make_project(site.person.workspace_id)
    with transaction() as session:
        version_id = a_version(session, project_id).id
        runs = []
        for last in (40, 20):
            run = service.start(
                session, site.person.actor, project_id=project_id, version_id=version_id,
                recipe=a_recipe(), client_request_id=new_id(),
            )  # fmt: skip
            runs.append(run.id)
            for step in range(1, last + 1):
                for name in ("loss", "validation_loss"):
                    session.add(MetricPoint(run_id=run.id, name=name, step=step, value=1.0 + (step < 9)))
    page = visit("/health")
    page.add_init_script(
        "window.written = {}; const write = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {"
        " written[text] = [x, y]; write.call(this, text, x, y); };"
    )
    page.goto(f"/projects/{project_id}/runs/compare?run={runs[0]}&run={runs[1]}")
    page.locator("compare-chart[data-ready] canvas").wait_for()
    (long_x, long_y), (short_x, short_y) = page.evaluate("['Run 1', 'Run 2'].map((name) => written[name])")
    assert long_x - short_x > 100, "the short line ends under the long one"
    assert abs(long_y - short_y) >= 9
    assert not is_scrolling_sideways(page)
