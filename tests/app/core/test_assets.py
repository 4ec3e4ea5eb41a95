"""Static files: addresses for ever, compressed, within their budgets; templates without anything inline."""

import gzip
import re

import pytest
from fastapi.testclient import TestClient

from app.core.assets import STATIC, assets
from app.core.templates import TEMPLATES, env

INLINE = re.compile(r"<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=|hx-on|javascript:|\sjs:|<style", re.IGNORECASE)
TEMPLATE_NAMES = sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.html"))


def sent(name: str) -> int:
    """Bytes that a browser is sent for a file."""
    found = assets().get(name)
    assert found is not None, name
    return len(found.gzipped or found.body)


def test_an_address_holds_the_hash_and_its_file_never_changes(client: TestClient) -> None:
    url = assets().url("app.css")
    assert re.fullmatch(r"/static/[0-9a-f]{12}/app\.css", url)
    answer = client.get(url, headers={"accept-encoding": "gzip"})
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content.startswith(b"\n@layer") or b"@layer" in answer.content
    plain = client.get(url, headers={"accept-encoding": "identity"})
    assert plain.content == answer.content
    assert "content-encoding" not in plain.headers


def test_an_old_address_still_answers_but_is_not_kept(client: TestClient) -> None:
    answer = client.get("/static/000000000000/app.css")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["../pyproject.toml", "%2e%2e/pyproject.toml", "nothing.css", ""])
def test_nothing_but_the_files_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{assets().version}/{name}").status_code == 404


def test_budgets_of_scripts_and_styles() -> None:
    everywhere = sent("vendor/htmx-bundle-4.0.1.js") + sent("app.js")
    chart = sum(sent(f"js/elements/{path.name}") for path in (STATIC / "js/elements").glob("*chart*.js"))
    assert everywhere <= 25_000
    assert everywhere + chart + sent("vendor/uplot-1.6.32.js") <= 55_000
    assert sent("app.css") <= 12_000


def test_the_compressed_file_is_the_file() -> None:
    found = assets().get("app.js")
    assert found is not None
    assert found.gzipped is not None
    assert gzip.decompress(found.gzipped) == found.body


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_template_compiles_and_has_nothing_inline(name: str) -> None:
    env.get_template(name)
    source = (TEMPLATES / name).read_text(encoding="utf-8")
    assert INLINE.search(source) is None
    assert len(source.splitlines()) <= 120


def test_every_icon_that_is_named_is_in_the_sprite() -> None:
    sprite = (STATIC / "icons.svg").read_text()
    known = set(re.findall(r'<symbol id="([^"]+)"', sprite))
    named = set()
    for name in TEMPLATE_NAMES:
        source = (TEMPLATES / name).read_text(encoding="utf-8")
        named |= set(re.findall(r'(?:icon=|ui\.icon\(|ui\.dot_icon\(|ui\.empty\()"([a-z0-9-]+)"', source))
    assert named - known == set()
