"""Hostile names, texts and values at every route: nothing is run, nothing is believed, nothing answers 500."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import select, update

from app.accounts.models import Member, User, Workspace
from app.chat.models import Chat, ChatMessage
from app.core.db import reading, transaction
from app.datasets.models import SourceFile, Upload
from app.evaluations.models import CaseResult
from app.main import create_app
from app.projects.models import Objective, Project
from app.recipes.models import BaseModelEntry
from app.runs.models import Model, Run, RunEvent, SampleAnswer
from tests.access.table import TABLE
from tests.access.test_access_matrix import Asker
from tests.access.world import World, add_keys, make_world
from tests.conftest import ROOT

MARKUP = '<img src=x onerror="alert(1)" hx-get="/evil">'
MARKDOWN = f"{MARKUP} [x](javascript:alert(1)) ![x](https://evil.example/?d=1) <b hx-get=/evil data-hx-on:load=x>b</b>"
NAMES = [MARKUP, "'; DROP TABLE users;--", "$(touch pwned);`touch pwned`|touch pwned", "{{ 7643*175321 }}{% raw %}"]
VALUES = [
    "' OR 1=1--",
    "NaN",
    "-1",
    "1e400",
    str(10**300),
    "true",
    "../../etc/passwd",
    "%00x",
    "\U0001f9c2" * 2000,
    "{{7643*175321}}",
]


@pytest.fixture
def world(database: Path) -> World:
    made = make_world("Ana")
    add_keys(made)
    return made


def rename_everything(world: World, name: str, text: str) -> None:
    ids = world.ids
    with transaction() as session:
        for model, values, where in [
            (Workspace, {"name": name}, Workspace.id == ids["workspace_id"]),
            (User, {"name": name}, User.id == world.people["owner"].user_id),
            (Project, {"name": name}, Project.id == ids["project_id"]),
            (SourceFile, {"filename": name, "licence": name}, SourceFile.id == ids["file_id"]),
            (Upload, {"filename": name}, Upload.id == ids["upload_id"]),
            (BaseModelEntry, {"name": name, "licence": name, "ref": name}, BaseModelEntry.id == ids["base_id"]),
            (Run, {"name": name, "sentence": name}, Run.id == ids["run_id"]),
            (Model, {"name": name, "warning": name}, Model.id == ids["model_id"]),
            (Chat, {"title": name, "system_prompt": name}, Chat.id == ids["chat_id"]),
            (ChatMessage, {"content": text}, ChatMessage.chat_id == ids["chat_id"]),
            (CaseResult, {"prompt": text, "ideal": text, "base_answer": text, "tuned_answer": text}, CaseResult.id > 0),
            (Objective, {"task": text, "audience": name, "tone": name}, Objective.project_id == ids["project_id"]),
        ]:
            session.execute(update(model).where(where).values(**values))
        session.add(RunEvent(run_id=ids["run_id"], sentence=text, level="warn"))
        session.add(SampleAnswer(run_id=ids["run_id"], step=120, prompt_index=0, prompt=name, text=text))


class Elements(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            text = (value or "").strip().lower()
            is_script = name.startswith(("on", "hx-on", "data-hx")) or text.startswith(
                ("javascript:", "vbscript:", "data:text")
            )
            is_foreign = "/evil" in text and name in ("src", "srcset", "hx-get", "hx-post", "action", "formaction")
            if is_script or is_foreign or (name == "src" and text == "x") or name == "style":
                self.found.append(f"<{tag} {name}={text[:60]}>")


def dangerous(page: str) -> list[str]:
    """Elements and attributes that hostile text must never become."""
    elements = Elements()
    elements.feed(page)
    return elements.found


def readable(app: FastAPI, world: World) -> list[tuple[str, Any]]:
    """Every page and fragment that an owner can open, with its answer. Streams are left out: they do not end."""
    asker = Asker(app, world.people["owner"])
    found = []
    for name, rule in sorted(TABLE.items()):
        if name.startswith("GET ") and not name.endswith("/events") and rule.kind in ("role", "signed_in"):
            found.append((name, asker.ask(name, rule, world.ids)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_and_texts_are_shown_as_text(world: World, name: str) -> None:
    rename_everything(world, name, MARKDOWN)
    shown = 0
    for route, answer in readable(create_app(), world):
        # 503: the files of the sample version are not on this disk.
        assert answer.status_code < 500 or answer.status_code == 503, (route, answer.status_code)
        if not answer.headers.get("content-type", "").startswith("text/html"):
            continue
        page = answer.text
        assert dangerous(page) == [], route
        assert "1339978403" not in page, route
        shown += name.replace("&", "&amp;").split("'")[0].split('"')[0].split("<")[-1][:12] in page
    assert shown >= 5


def test_hostile_query_values_are_refused_or_find_nothing(world: World) -> None:
    app = create_app()
    asker = Asker(app, world.people["owner"])
    tried = 0
    for route in iter_route_contexts(app.routes):
        name = f"GET {route.path}"
        if "GET" not in (route.methods or ()) or name not in TABLE or name.endswith("/events"):
            continue
        parameters = [field.alias for field in getattr(route, "dependant").query_params]  # noqa: B009
        for parameter in parameters:
            for value in VALUES:
                url = re.sub(r"{(\w+)(?::\w+)?}", lambda found: world.ids.get(found.group(1), "x"), str(route.path))
                answer = asker.browser.get(url, params={parameter: value})
                assert answer.status_code < 500 or answer.status_code == 503, (name, parameter, value)
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("value", VALUES)
def test_hostile_form_values_are_refused_or_kept_as_text(world: World, value: str) -> None:
    app = create_app()
    asker = Asker(app, world.people["editor"])
    for name, rule in sorted(TABLE.items()):
        if not name.startswith("POST ") or rule.kind in ("key", "public") or not rule.form:
            continue
        for field in rule.form:
            form = {**rule.form, field: value.replace("{", "{{").replace("}", "}}")}
            changed = type(rule)(kind=rule.kind, need=rule.need, form=form)
            answer = asker.ask(name, changed, world.ids)
            assert answer.status_code < 500 or answer.status_code == 503, (name, field, answer.status_code)


def test_fields_that_nobody_asked_for_change_nothing(world: World) -> None:
    """Mass assignment: whatever a form brings along, roles, owners, states and fences stay as they were."""
    app = create_app()
    extra = {
        "is_admin": "true",
        "is_active": "false",
        "role": "owner",
        "workspace_id": "stolen",
        "user_id": "stolen",
        "state": "succeeded",
        "fence": "99",
        "password_hash": "x",
        "deleted_at": "2020-01-01",
    }

    def facts() -> list[Any]:
        with reading() as session:
            return [
                sorted((m.user_id, m.workspace_id, m.role) for m in session.scalars(select(Member))),
                sorted((u.id, u.password_hash, u.is_active) for u in session.scalars(select(User))),
                sorted((p.id, p.workspace_id, p.deleted_at) for p in session.scalars(select(Project))),
                sorted((r.id, r.workspace_id, r.fence, r.state) for r in session.scalars(select(Run))),
            ]

    before = facts()
    asker = Asker(app, world.people["editor"])
    for name in ("POST /account/name", "POST /projects/{project_id}/name", "POST /projects/{project_id}/objective"):
        rule = TABLE[name]
        changed = type(rule)(kind=rule.kind, need=rule.need, form=extra | rule.form)
        assert asker.ask(name, changed, world.ids).status_code in (303, 422), name
    assert facts() == before


def test_reading_changes_nothing(world: World) -> None:
    """No GET changes state, but for what was used when."""
    app = create_app()
    readable(app, world)

    def rows() -> dict[str, Any]:
        with reading() as session:
            tables = [Member, User, Workspace, Project, Objective, Run, Model, Chat, ChatMessage, SourceFile]
            columns = {t.__tablename__: session.execute(select(t.__table__)).all() for t in tables}
            return {name: sorted(map(str, found)) for name, found in columns.items()}

    before = rows()
    readable(app, world)
    assert rows() == before


def test_downloads_are_never_opened_by_the_browser(world: World) -> None:
    rename_everything(world, 'a"; filename="b.html', MARKDOWN)
    for route, answer in readable(create_app(), world):
        kind = answer.headers.get("content-type", "")
        assert answer.headers["x-content-type-options"] == "nosniff", route
        assert answer.headers["cache-control"] in ("no-store", "no-cache"), "whatever is somebody's own is not kept"
        assert "svg" not in kind, route
        if answer.status_code == 200 and kind and not kind.startswith(("text/html", "application/json")):
            disposition = answer.headers.get("content-disposition", "")
            assert disposition.startswith("attachment"), (route, kind)
            assert disposition.count('filename="') == 1, route


def test_no_shell_no_pickle_no_remote_code_anywhere() -> None:
    """Names reach processes only as arguments of a list, weights only as safetensors."""
    bad = []
    for path in [*(ROOT / "app").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                is_bad = (
                    called in ("os.system", "os.popen", "eval", "exec", "yaml.load", "pickle.load", "pickle.loads")
                    or called in ("torch.load", "marshal.loads", "shelve.open")
                    or called.endswith(".extractall")
                    or options.get("shell") == "True"
                    or options.get("trust_remote_code", "False") != "False"
                )
                if is_bad:
                    bad.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert bad == []
