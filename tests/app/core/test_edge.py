"""The outermost layer: hosts, headers, foreign requests, broken input, errors without details, lines of log."""

import json
import logging
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Form, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from app.core import config
from app.core.config import get_settings
from app.core.csrf import csrf_checked
from app.core.error_pages import as_app_error
from app.core.errors import Conflict, NotFound, TooMany
from app.core.logging import configure, redact
from app.core.web import SAFE_METHODS, SessionDep
from app.projects.models import Project
from tests.access.table import routes_of
from tests.visitors import Person, browser_of, make_person, make_project

PAGE = {"accept": "text/html"}


class Numbers(BaseModel):
    rate: float = Field(allow_inf_nan=False, ge=0, le=1)
    count: int = Field(1, ge=0, le=10)
    name: str = Field("", max_length=100)
    password: str = Field("", min_length=0, max_length=20)


@pytest.fixture
def person(database: object) -> Person:
    return make_person()


@pytest.fixture
def wide(app: FastAPI) -> FastAPI:
    """The product with a few routes more, which do what a slice may do by mistake."""
    checked = [Depends(csrf_checked)]

    @app.post("/probe/json", dependencies=checked)
    def take(body: Numbers) -> dict[str, Any]:
        return {"rate": body.rate, "name": body.name}

    @app.post("/probe/any", dependencies=checked)
    def take_any(body: dict[str, Any], session: SessionDep) -> dict[str, Any]:
        session.add(Project(workspace_id="w", name=str(body["name"])))
        session.flush()
        return {}

    @app.post("/probe/form", dependencies=checked)
    def take_form(name: Annotated[str, Form(max_length=5)]) -> dict[str, str]:
        return {"name": name}

    @app.get("/probe/number/{number}")
    def number(number: int, session: SessionDep) -> dict[str, int]:
        session.get(Project, number)
        return {"number": 1}

    @app.get("/probe/broken")
    def broken() -> None:
        raise RuntimeError("the password is hunter2 in /etc/secret/place")

    @app.get("/probe/{kind}")
    def refuse(kind: str, request: Request) -> None:
        raise {"conflict": Conflict("Somebody else was faster."), "many": TooMany(retry_after_s=7)}.get(
            kind, NotFound()
        )

    return app


def test_every_answer_carries_the_headers(client: TestClient) -> None:
    for path in ("/sign-in", "/nothing", "/static/x/nothing.js"):
        headers = client.get(path, headers=PAGE).headers
        policy = headers["content-security-policy"]
        for part in (
            "default-src 'none'",
            "script-src localhost/static/;",
            "style-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "require-trusted-types-for 'script'",
            "trusted-types htmx",
        ):
            assert part in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert len(headers["x-request-id"]) == 20
        assert "strict-transport-security" not in headers
        assert "server" not in headers


def test_on_https_the_cookie_is_bound_to_the_host(
    app: FastAPI, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_BUILDER_IS_HTTPS", "true")
    config.get_settings.cache_clear()
    browser = browser_of(app)
    browser.cookies.set("__Host-sid", person.cookie)
    answer = browser.get("/account")
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert browser_of(app, person).get("/account").status_code == 303


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 303),
        ("LOCALHOST:8000", 303),
        ("127.0.0.1:5", 303),
        ("[::1]:8000", 303),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("localhost@evil.example", 400),
        ("localhost:80/x", 400),
        ("", 400),
    ],
)
def test_only_known_hosts_are_served(client: TestClient, host: str, status: int) -> None:
    assert client.get("/", headers=PAGE | {"host": host}).status_code == status


def test_forwarded_headers_of_strangers_change_nothing(app: FastAPI, person: Person) -> None:
    forged = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.1"}
    form = {"workspace_id": person.workspace_id, "role": "viewer"}
    page = browser_of(app, person).post("/members/invitations", data=form, headers=forged).text
    assert "http://localhost/join?token=" in page
    assert "evil.example" not in page
    log = browser_of(app, person).get("/audit").text
    assert "203.0.113.1" not in log
    assert "testclient" in log


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
    ],
)
def test_foreign_requests_are_refused_even_with_the_token(
    app: FastAPI, person: Person, headers: dict[str, str]
) -> None:
    assert browser_of(app, person).post("/account/name", data={"name": "Eve"}, headers=headers).status_code == 403
    assert "Eve" not in browser_of(app, person).get("/account").text


def test_a_token_of_somebody_else_is_refused(app: FastAPI, person: Person) -> None:
    browser = browser_of(app, person)
    own = make_token(person.cookie)
    changed = own[:5] + ("A" if own[5] != "A" else "B") + own[6:]
    for token in ("", "x", "é", make_token("another cookie"), changed):
        browser.headers["x-csrf-token"] = ""
        assert browser.post("/account/name", data={"name": "Eve", "csrf_token": token}).status_code == 403
        browser.headers["x-csrf-token"] = token.replace("é", "e")
        assert browser.post("/account/name", data={"name": "Eve"}).status_code == 403
    browser.headers["x-csrf-token"] = ""
    form = {"name": "Ana Maria", "csrf_token": make_token(person.cookie)}
    assert browser.post("/account/name", data=form, headers={"sec-fetch-site": "same-origin"}).status_code == 303


def make_token(cookie: str) -> str:
    from app.core.security import csrf_token

    return csrf_token(cookie)


def test_every_route_that_changes_something_asks_for_the_token(app: FastAPI, person: Person) -> None:
    """Every unsafe route of the product, with a right session and no token; the API has keys instead."""
    browser = browser_of(app, person)
    browser.headers["x-csrf-token"] = ""
    tried = 0
    for method, path in routes_of(app):
        if method in SAFE_METHODS or path.startswith("/v1/"):
            continue
        answer = browser.request(method, re.sub(r"{[^}]+}", "a" * 20, path))
        assert answer.status_code == 403, (method, path, answer.status_code)
        tried += 1
    assert tried >= 10


@pytest.mark.parametrize(
    "body",
    [
        '{"rate": NaN}',
        '{"rate": Infinity}',
        '{"rate": -Infinity}',
        '{"rate": 1e400}',
        '{"rate": 1' + "0" * 5000 + "}",
        '{"rate": 0.5, "count": 1' + "0" * 300 + "}",
        '{"rate": 0.5, "count": true, "name": {}}',
        '{"rate": 0.5, "name": "\\ud800"}',
        '{"rate": 0.5, "name": "a\\u0000b"}',
        "[" * 100_000,
        '{"rate": ' + "[" * 100_000,
        "{",
        "\x00",
        "\xff\xfe",
    ],
)
def test_broken_values_are_refused_and_never_repeated(wide: FastAPI, person: Person, body: str) -> None:
    browser = browser_of(wide, person)
    for accept in ("application/json", "text/html"):
        answer = browser.post(
            "/probe/json",
            content=body.encode("latin-1"),
            headers={"content-type": "application/json", "accept": accept},
        )
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
        assert "NaN" not in re.sub(r"[\w-]{20,}", "", answer.text), "tokens may hold anything by chance"
        assert "ctx" not in answer.text
        assert "input" not in answer.json().get("error", {}) if accept == "application/json" else True


def test_a_large_body_is_refused_before_it_is_read(wide: FastAPI, person: Person) -> None:
    browser = browser_of(wide, person)
    body = json.dumps({"rate": 0.5, "name": "x" * 10_000_000})
    json_type = {"content-type": "application/json", "accept": "application/json"}
    answer = browser.post("/probe/json", content=body, headers=json_type)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"
    page = browser.post("/probe/form", data={"name": "x" * 10_000_000})
    assert page.status_code == 413
    assert page.headers["content-type"].startswith("text/html")
    chunked = browser.post("/probe/json", content=iter([b"x" * 2**20] * 4), headers=json_type)
    assert chunked.status_code == 413


def test_what_was_typed_is_not_in_the_refusal(wide: FastAPI, person: Person) -> None:
    browser = browser_of(wide, person)
    secret = "sesame-opens-the-door-now"
    answer = browser.post("/probe/json", json={"rate": 0.5, "password": secret}, headers={"accept": "*/*"})
    assert answer.status_code == 422
    assert answer.json()["error"]["fields"] == {"password": "This is too long."}
    assert secret not in answer.text
    assert secret not in browser.post("/probe/form", data={"name": secret}).text


def test_values_that_no_column_holds_are_refused(wide: FastAPI, person: Person) -> None:
    browser = browser_of(wide, person)
    assert browser.get(f"/probe/number/{10**40}").status_code == 422
    assert browser.post("/probe/any", json={"name": "ok"}).status_code in (409, 422, 500)
    raw = {"content-type": "application/json"}
    assert browser.post("/probe/any", content=b'{"name": "\\ud83d"}', headers=raw).status_code == 422
    assert browser.post("/probe/any", content=b'{"name": "a\\u0000"}', headers=raw).status_code == 422
    assert browser.post("/account/name", data={"name": "a\0b"}).status_code == 422
    assert browser.get("/audit?action=%00").status_code == 400
    assert browser.get("/members?workspace=%ff%fe").status_code == 404


def test_an_unexpected_error_tells_only_its_number(wide: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    browser = browser_of(wide)
    for accept in ("text/html", "application/json"):
        answer = browser.get("/probe/broken", headers={"accept": accept})
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] in answer.text
        for word in ("hunter2", "/etc", "RuntimeError", "Traceback", "python", "fastapi"):
            assert word not in answer.text
    assert any("unexpected error" in record.message for record in caplog.records)


def test_errors_come_as_page_toast_or_json(wide: FastAPI) -> None:
    browser = browser_of(wide)
    page = browser.get("/probe/conflict")
    assert page.status_code == 409
    assert "Somebody else was faster." in page.text
    assert browser.get("/probe/conflict", headers={"accept": "*/*"}).json()["error"]["code"] == "conflict"
    assert browser.get("/probe/many").headers["retry-after"] == "7"
    assert browser.put("/sign-in").status_code == 405
    for before, back in (
        ("http://localhost/versions/x?page=2", "/versions/x?page=2"),
        ("http://elsewhere.example/versions/x", "/projects"),
        ("http://localhost//elsewhere.example", "/projects"),
        ("", "/projects"),
    ):
        refused = browser.post("/probe/form", data={"name": "too long"}, headers={"referer": before})
        assert refused.status_code == 422
        assert f'href="{back}"' in refused.text, "not the address that only takes the form"
        assert refused.headers["hx-push-url"] == "false"
    assert browser.get("/probe/conflict", headers={"hx-request": "true"}).headers["x-error"].startswith("Somebody%20")


def test_a_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    forged = "Grandma\r\n2026-11-21 INFO forged line\u2028\x1b[31m"
    try:
        for is_json in (True, False):
            configure(is_json=is_json)
            logging.getLogger("app.test").warning("run %s renamed", forged, extra={"run_name": forged})
            lines = [line for line in capsys.readouterr().err.split("\n") if line]
            assert len(lines) == 1
            assert "\x1b" not in lines[0]
            assert "\u2028" not in lines[0]
            if is_json:
                assert "forged line" in json.loads(lines[0])["run_name"]
    finally:
        root.handlers[:], root.level = before, level


def test_secrets_do_not_reach_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    key = "sk-abcdefghjkmnpqrstuvw_0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
    try:
        configure(is_json=True)
        logging.getLogger("app.test").error("key %s", key, extra={"password": "hunter2", "note": f"Bearer {key}"})
        try:
            raise RuntimeError(f"cannot reach redis://web:topsecret@host/0 with {key}")
        except RuntimeError:
            logging.getLogger("app.test").exception("failed")
    finally:
        root.handlers[:], root.level = before, level
    written = capsys.readouterr().err
    for secret in ("hunter2", key[10:], "topsecret"):
        assert secret not in written
    assert redact("hf_abcdefghijkl") == "hf_…"


def test_a_large_upload_is_not_read_before_anybody_looked_at_the_asker(app: FastAPI, person: Person) -> None:
    """The token of a form on an upload route comes in the address: nobody fills the disk on the way to a refusal."""
    project_id = make_project(person.workspace_id)
    read = 0

    def body() -> Any:
        nonlocal read
        head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
        for piece in [head, *([b"y" * 2**20] * 8), b"\r\n--x--\r\n"]:
            read += len(piece)
            yield piece

    path = f"/projects/{project_id}/files"
    form_type = {"content-type": "multipart/form-data; boundary=x"}
    viewer = make_person("Vera", "viewer", person.workspace_id)
    for browser, token, status in (
        (browser_of(app), "", 303),
        (browser_of(app, person), "", 403),
        (browser_of(app, viewer), make_token(viewer.cookie), 403),
    ):
        browser.headers["x-csrf-token"] = ""
        answer = browser.post(f"{path}?csrf_token={token}", content=body(), headers=form_type)
        assert answer.status_code == status
    assert list((get_settings().home_dir).glob("uploads/*")) == []
    browser = browser_of(app, person)
    page = browser.get(f"/projects/{project_id}/data").text
    action = re.search(rf'action="({path}\?csrf_token=[^"]+)"', page)
    assert action
    browser.headers["x-csrf-token"] = ""
    assert browser.post(action.group(1), content=body(), headers=form_type).status_code == 303


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'full.db'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (what)")
        connection.exec_driver_sql("PRAGMA max_page_count = 2")
        with pytest.raises(OperationalError) as full:
            connection.exec_driver_sql("INSERT INTO kept VALUES (zeroblob(100000))")
    with pytest.raises(OperationalError) as away:
        create_engine(f"sqlite:///{tmp_path / 'no' / 'where.db'}").connect()
    engine.dispose()
    told = [as_app_error(error.value) for error in (full, away)]
    assert [(one.status, one.code) for one in told] == [(507, "disk_full"), (503, "unavailable")]
    assert "The disk is full." in told[0].sentence
