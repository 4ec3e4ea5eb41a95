"""A site for browser tests of pages: the application in a thread of this process, and a signed-in browser."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from tests.conftest import wait_for
from tests.visitors import Person, make_person

# Every picture of these tests is taken at these sizes: a desk and a phone.
WIDTHS = {1440: 900, 390: 844}


@dataclass(frozen=True)
class Site:
    """The address of a running application and somebody who is signed in."""

    url: str
    person: Person


@pytest.fixture
def development(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches the page of components on; ask for it before `site`."""
    monkeypatch.setenv("GPT_BUILDER_IS_DEVELOPMENT", "1")


@pytest.fixture
def app_of_site(database: Path) -> FastAPI:
    from app.main import create_app

    return create_app()


@pytest.fixture
def site(app_of_site: FastAPI) -> Iterator[Site]:
    """The pages of this test's own database, served over HTTP."""
    config = uvicorn.Config(app_of_site, port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the site answers")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Site(f"http://127.0.0.1:{port}", make_person("Ana", "owner"))
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def visit(site: Site, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a signed-in page in a fresh profile: `visit("/projects", theme="dark", width=390)`.

    Whatever the console says, or a script throws, fails the test at its end.
    """
    said: list[str] = []
    contexts = []

    def opened(path: str, *, theme: str = "light", width: int = 1440, scripts: bool = True, **more: Any) -> Any:
        is_phone = width < 500
        context = browser.new_context(
            viewport={"width": width, "height": WIDTHS.get(width, 900)}, color_scheme=theme, has_touch=is_phone,
            is_mobile=is_phone, java_script_enabled=scripts, base_url=site.url, **more,
        )  # fmt: skip
        contexts.append(context)
        context.add_cookies([{"name": "sid", "value": site.person.cookie, "url": site.url}])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"thrown: {error}"))
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    # The browser itself notes an answer of 404 or 422, which the page shows in words.
    assert [line for line in said if "status of 404" not in line and "status of 422" not in line] == []


def is_scrolling_sideways(page: Any) -> bool:
    """Whether the page itself is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


AXE_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


def axe_findings(page: Any, rules: Sequence[str] = AXE_RULES) -> list[str]:
    """What axe finds wrong with the page as it stands. The page's context needs bypass_csp=True."""
    from axe_playwright_python.sync_playwright import Axe

    # A colour on its way from one theme to the other is in neither.
    page.evaluate("for (const one of document.getAnimations()) if (one instanceof CSSTransition) one.finish()")
    options = {"runOnly": list(rules)}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{item['id']}: {node['target']} {node['failureSummary'][:300]}" for item in found for node in item["nodes"]
    ]
