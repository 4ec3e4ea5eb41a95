"""Every route × everybody × every id. A route without an entry in the table fails; so does one that tells strangers
from thieves: what belongs to somebody else must look exactly like what does not exist."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.core import config, db
from app.core.db import new_id
from app.main import create_app
from tests.access.table import TABLE, Rule, routes_of
from tests.access.world import ROLES, World, add_keys, make_world
from tests.visitors import Person, browser_of

PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
ROUTES = sorted(TABLE)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, World, World]:
    """A database with two worlds, made once and copied for each route."""
    folder = tmp_path_factory.mktemp("worlds")
    patch = pytest.MonkeyPatch()
    patch.setenv("GPT_BUILDER_HOME", str(folder))
    config.get_settings.cache_clear()
    db.forget_engine()
    shutil.copyfile(empty_database, folder / "gpt-builder.db")
    ours, theirs = make_world("Ana"), make_world("Zoe")
    add_keys(ours)
    add_keys(theirs)
    with db.get_engine().connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    db.forget_engine()
    patch.undo()
    config.get_settings.cache_clear()
    return folder / "gpt-builder.db", ours, theirs


@pytest.fixture
def worlds(sample: tuple[Path, World, World], home: Path) -> tuple[World, World]:
    shutil.copyfile(sample[0], home / "gpt-builder.db")
    return sample[1], sample[2]


class Asker:
    """One kind of visitor, and the exact answer that a route gives them."""

    def __init__(self, app: FastAPI, person: Person | None = None, key: str = "") -> None:
        self.browser: TestClient = browser_of(app, person)
        if key:
            self.browser.headers["authorization"] = f"Bearer {key}"

    def ask(self, name: str, rule: Rule, ids: dict[str, str], body_ids: dict[str, str] | None = None) -> Any:
        method, path = name.split(" ", 1)
        url = PARAMETER.sub(lambda found: ids.get(found.group(1), "x"), path)
        if rule.query:
            url += "?" + rule.query.format(**ids)
        body = {key: _filled(value, ids | (body_ids or {})) for key, value in rule.form.items()}
        if rule.json is not None:
            json = {key: _filled(value, ids | (body_ids or {})) for key, value in rule.json.items()}
            return self.browser.request(method, url, json=json, headers=rule.headers)
        files = {name: ("file", content) for name, content in rule.files.items()}
        return self.browser.request(method, url, data=body or None, files=files or None, headers=rule.headers)


def _filled(value: Any, ids: dict[str, str]) -> Any:
    return value.format(**ids) if isinstance(value, str) and "{" in value else value


def plain(answer: Any, *secrets: str) -> tuple[int, str]:
    """Status and body, without the request's number, the page's token and the ids that were asked for."""
    text = answer.text.replace(answer.headers["x-request-id"], "")
    text = re.sub(r'(name="csrf_token" value=|"X-CSRF-Token": )"[^"]+"', "", text)
    for secret in secrets:
        text = text.replace(secret, "")
    return answer.status_code, text


def missing(ids: dict[str, str]) -> dict[str, str]:
    """The same names with ids that do not exist."""
    return {name: ("987654321" if value.isdigit() else new_id()) for name, value in ids.items()}


def is_refused(answer: Any) -> bool:
    """Asked to sign in: a redirect for a page, 401 for a key's client."""
    if answer.status_code == 303:
        return bool(answer.headers["location"].startswith("/sign-in"))
    return bool(answer.status_code == 401)


def test_every_route_has_an_entry(app: FastAPI) -> None:
    found = {f"{method} {path}" for method, path in routes_of(app)}
    assert sorted(found - set(TABLE)) == [], "say in tests/access/table.py who may use these"
    assert sorted(set(TABLE) - found) == [], "these routes are gone"


@pytest.mark.parametrize("name", ROUTES)
def test_everybody_at(name: str, worlds: tuple[World, World]) -> None:
    ours, theirs = worlds
    rule, app = TABLE[name], create_app()
    if rule.kind == "key":
        return try_keys(name, rule, app, ours, theirs)
    anonymous = Asker(app).ask(name, rule, ours.ids)
    if rule.kind == "public":
        assert anonymous.status_code not in (401, 403)
        assert anonymous.status_code < 500
        return
    assert is_refused(anonymous), (name, anonymous.status_code)
    # Keys open the API and nothing else.
    for key in (ours.key, ours.revoked_key, theirs.key):
        assert is_refused(Asker(app, key=key).ask(name, rule, ours.ids)), name
    if rule.kind == "signed_in":
        for role in ROLES:
            answer = Asker(app, ours.people[role]).ask(name, rule, ours.ids)
            assert answer.status_code < 500
            assert not is_refused(answer)
            assert answer.status_code not in (403, 404), (name, role, answer.status_code)
            for secret in ("project_id", "run_id", "chat_id"):
                assert theirs.ids[secret] not in answer.text
        return
    try_strangers(name, rule, app, ours, theirs)
    try_roles(name, rule, app, ours)


def try_strangers(name: str, rule: Rule, app: FastAPI, ours: World, theirs: World) -> None:
    """An owner elsewhere: each id in path, query and body, one at a time, equals an id that does not exist."""
    stranger = Asker(app, theirs.people["owner"])
    nothing = missing(ours.ids)
    named = [*PARAMETER.findall(name), *re.findall(r"{(\w+)}", rule.query)]
    named = [one for one in named if one in ours.ids and one != "step"]
    assert named or rule.body_ids, f"{name} names nothing: is it for everybody who is signed in?"
    for one in named:
        foreign = stranger.ask(name, rule, theirs.ids | {one: ours.ids[one]})
        absent = stranger.ask(name, rule, theirs.ids | {one: nothing[one]})
        assert foreign.status_code == 404, (name, one, foreign.status_code, foreign.text[:300])
        assert plain(foreign, ours.ids[one]) == plain(absent, nothing[one]), (name, one)
    for one in rule.body_ids:
        asker = Asker(app, theirs.people["owner"])
        foreign = asker.ask(name, rule, theirs.ids, {one: ours.ids[one]})
        absent = asker.ask(name, rule, theirs.ids, {one: nothing[one]})
        assert foreign.status_code in (404, 422), (name, one, foreign.status_code)
        assert plain(foreign, ours.ids[one]) == plain(absent, nothing[one]), (name, one)


def try_roles(name: str, rule: Rule, app: FastAPI, ours: World) -> None:
    """From the weakest role to the strongest: refused below the needed one, let in from there on."""
    for role in ROLES:
        answer = Asker(app, ours.people[role]).ask(name, rule, ours.ids)
        if ROLES.index(role) < ROLES.index(rule.need):
            assert answer.status_code == 403, (name, role, answer.status_code, answer.text[:300])
        else:
            assert answer.status_code not in (401, 403, 404), (name, role, answer.status_code, answer.text[:300])
            assert answer.status_code < 500 or answer.status_code == 503, (name, role, answer.status_code)
            assert not is_refused(answer)
            return


def try_keys(name: str, rule: Rule, app: FastAPI, ours: World, theirs: World) -> None:
    """No key, a revoked one, a session cookie, and a key of another workspace."""
    for asker in (
        Asker(app),
        Asker(app, key=ours.revoked_key),
        Asker(app, key="sk-nonsense"),
        Asker(app, key=f"{ours.key[:24]}{'x' * 20}"),
        Asker(app, ours.people["owner"]),
    ):
        assert asker.ask(name, rule, ours.ids).status_code == 401, name
    stranger, nothing = Asker(app, key=theirs.key), missing(ours.ids)
    named = [one for one in PARAMETER.findall(name) if one in ours.ids]
    for one in [*named, *rule.body_ids]:
        foreign = stranger.ask(name, rule, theirs.ids | {one: ours.ids[one]})
        absent = stranger.ask(name, rule, theirs.ids | {one: nothing[one]})
        assert foreign.status_code == 404, (name, one, foreign.status_code, foreign.text[:300])
        assert plain(foreign, ours.ids[one]) == plain(absent, nothing[one]), (name, one)
    answer = Asker(app, key=ours.key).ask(name, rule, ours.ids)
    assert answer.status_code not in (401, 403, 404), (name, answer.status_code, answer.text[:300])
