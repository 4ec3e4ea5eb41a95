"""The page of all components: photographed in both themes at both widths, clean for axe, every control alive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import axe_findings, is_scrolling_sideways

pytestmark = pytest.mark.e2e
LOOKS = [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)]


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_every_component_in_every_state(
    development: None, visit: Callable[..., Any], tmp_path: Path, theme: str, width: int
) -> None:
    page = visit("/ui", theme=theme, width=width, bypass_csp=True)
    page.locator("live-chart[data-ready]").wait_for()
    page.screenshot(path=tmp_path / f"components-{theme}-{width}.png", full_page=True)
    assert not is_scrolling_sideways(page)
    assert axe_findings(page) == []


def test_the_chart_reads_zooms_and_tabulates(development: None, visit: Callable[..., Any]) -> None:
    page = visit("/ui")
    chart = page.locator("live-chart[data-ready]")
    plot = chart.locator(".chart-plot")
    plot.focus()
    page.keyboard.press("Home")
    assert chart.locator("[data-status]").text_content().startswith("Step 4, Training")
    page.keyboard.press("Shift+ArrowRight")
    assert chart.locator("[data-status]").text_content().startswith("Step 44, ")
    assert chart.locator(".chart-tip strong").text_content() == "Step 44"
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 100, steps=4)
    page.mouse.up()
    reset = chart.get_by_role("button", name="Reset zoom")
    reset.wait_for()
    assert chart.evaluate("element => element.zoom[1] - element.zoom[0]") < 1500
    reset.click()
    assert not reset.is_visible()
    for name in ("All", "Log", "Focus"):
        chart.get_by_role("button", name=name, exact=True).click()
        assert chart.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"
    chart.get_by_role("button", name="Validation").click()
    assert chart.get_by_role("button", name="Validation").get_attribute("aria-pressed") == "false"
    chart.get_by_role("button", name="Table").click()
    assert chart.locator(".chart-table tbody tr").count() > 100


def test_what_the_chart_is_given_is_never_changed_and_of_one_length(
    development: None, visit: Callable[..., Any]
) -> None:
    page = visit("/ui")
    chart = page.locator("live-chart[data-ready]")
    # Late, doubled and invalid points, as a stream that was broken off brings them.
    lengths = chart.evaluate(
        """async (chart) => {
            const before = chart.data, kept = before.map((values) => values.length);
            chart.series.add({ step: [2908, 4, 2], loss: [1.4, 99, 4.9], val: [[3, 4.8], [2912, 2.1]] });
            chart.draw();
            await new Promise((done) => setTimeout(done, 200));
            const same = before.every((values, i) => values.length === kept[i]);
            return { same, now: chart.data.map((values) => values.length), first: chart.data[0].slice(0, 3),
                     fourth: chart.data[1][2], sorted: chart.data[0].every((s, i, all) => !i || s > all[i - 1]) };
        }"""
    )
    assert lengths["same"]
    assert len(set(lengths["now"])) == 1
    assert lengths["first"] == [2, 3, 4]
    assert lengths["sorted"]
    assert lengths["fourth"] < 10, "a point that is there already is not overwritten by its replay"


def test_dialogs_terms_and_menus_open(development: None, visit: Callable[..., Any]) -> None:
    page = visit("/ui")
    page.get_by_role("button", name="Stop the run").click()
    page.get_by_role("dialog", name="Stop this run?").wait_for()
    page.get_by_role("button", name="Keep training").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.get_by_role("button", name="learning rate").click()
    page.get_by_text("How large each correction is. Too high").wait_for()
    page.keyboard.press("Escape")
    page.locator("#switcher > summary").click()
    page.get_by_role("link", name="New project").wait_for()


def test_it_is_hidden_in_production(visit: Callable[..., Any], site: Any) -> None:
    import httpx

    assert httpx.get(f"{site.url}/ui").status_code == 404
