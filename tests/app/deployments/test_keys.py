"""API keys: shown once, kept as a hash, refused when they end; ids of models that stay; limits that hold."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update

from app.core import limits
from app.core.db import reading, transaction, utcnow
from app.core.errors import Forbidden, NotFound, TooMany, Unauthenticated
from app.core.redis_server import RedisServer
from app.deployments import keys, names
from app.deployments.models import ApiKey
from app.projects import service as projects
from app.projects.models import Project
from app.runs.models import Checkpoint, Model, Run
from tests.visitors import Person, browser_of, make_person, make_project


@pytest.fixture
def ana(database: Path) -> Person:
    return make_person("Ana")


@pytest.fixture
def project_id(ana: Person) -> str:
    return make_project(ana.workspace_id, "Support sorter")


def new_key(ana: Person, project_id: str, **more: object) -> str:
    with transaction() as session:
        values: dict[str, object] = {"name": "inbox", "scopes": ["read", "chat"], **more}
        return keys.make(session, ana.actor, project_id, **values)[1]  # type: ignore[arg-type]


def caller(text: str) -> keys.Caller:
    with reading() as session:
        return keys.caller_of(session, f"Bearer {text}")


def add_run(project_id: str, workspace_id: str, number: int) -> None:
    with transaction() as session:
        run = Run(project_id=project_id, workspace_id=workspace_id, number=number, name=f"Run {number}", recipe={})
        session.add(run)
        session.flush()
        session.add(Model(project_id=project_id, run_id=run.id, name=run.name, kind="lora", files={}, step=1))


def ids(person: Person) -> list[str]:
    with transaction() as session:
        names.give_names(session, person.workspace_id)
        return [one.id for one in names.published(session, person.actor)]


def test_a_key_is_shown_once_and_nowhere_stored(app: FastAPI, ana: Person, project_id: str, database: Path) -> None:
    browser = browser_of(app, ana)
    form = {
        "name": "inbox",
        "scopes": ["read", "chat"],
        "reach": "project",
        "days": "90",
        "requests_per_minute": "60",
    }
    page = browser.post(f"/projects/{project_id}/deploy/keys", data=form)
    text = next(word for word in page.text.replace("<", " ").replace(">", " ").split() if word.startswith("sk-"))
    assert caller(text).requests_per_minute == 60
    assert page.headers["cache-control"] == "no-store"
    again = browser.get(f"/projects/{project_id}/deploy").text
    assert text not in again
    assert f"sk-…{text[-4:]}" in again
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    assert text not in dump
    assert text.split("_", 1)[1] not in dump
    assert "key.made" in browser.get("/audit").text


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"scopes": []}, {"days": "-1"}, {"requests_per_minute": "0"}, {"x": "1"}]
)
def test_a_form_that_does_not_fit_makes_no_key(
    app: FastAPI, ana: Person, project_id: str, wrong: dict[str, object]
) -> None:
    form = {"name": "inbox", "scopes": ["chat"], "days": "90", "requests_per_minute": "60"} | wrong
    assert browser_of(app, ana).post(f"/projects/{project_id}/deploy/keys", data=form).status_code == 422
    with reading() as session:
        assert keys.listing(session, ana.actor, project_id) == []


def test_checkpoints_of_a_finished_model_do_not_push_the_keys_away(app: FastAPI, ana: Person, project_id: str) -> None:
    """They lie folded below the models; those of a run that goes on are all there is of it and stand open."""
    add_run(project_id, ana.workspace_id, 1)
    with transaction() as session:
        runs = [session.scalars(select(Run)).one().id]
        going = Run(
            project_id=project_id, workspace_id=ana.workspace_id, number=2, name="Run 2", recipe={}, state="running"
        )
        session.add(going)
        session.flush()
        about = {"attempt_id": "a", "fence": 1, "dir": "", "manifest_sha256": "", "size_bytes": 1}
        for run_id in (*runs, going.id):
            session.add_all(Checkpoint(run_id=run_id, step=step, **about) for step in (10, 20))
    page = browser_of(app, ana).get(f"/projects/{project_id}/deploy").text
    before, folded = page.split('<details class="more" id="checkpoints">')
    listed, folded = before.split('id="models"')[1], folded.split("</details>")[0]
    first, second = "support-sorter-run-1", "support-sorter-run-2"
    assert [listed.count(f"<code>{one}</code>") for one in (first, f"{second}:step-10", f"{second}:step-20")] == [1] * 3
    assert "2 checkpoints of these models" in folded
    assert [folded.count(f"<code>{first}:step-{step}</code>") for step in (10, 20)] == [1, 1]
    assert f"{second}:" not in folded
    assert f"{first}:" not in listed


def test_a_revoked_key_is_refused_on_its_next_request(app: FastAPI, ana: Person, project_id: str) -> None:
    text = new_key(ana, project_id)
    key_id = caller(text).actor.key_id
    page = browser_of(app, ana).get(f"/projects/{project_id}/deploy").text
    assert f'commandfor="revoke-{key_id}"' in page, "one click too many would stop a program for good"
    assert f'action="/keys/{key_id}/revoke"' in page.split(f'<dialog class="dialog" id="revoke-{key_id}"')[1]
    assert browser_of(app, ana).post(f"/keys/{key_id}/revoke").status_code == 303
    with pytest.raises(Unauthenticated):
        caller(text)


def test_an_expired_key_is_refused(ana: Person, project_id: str) -> None:
    text = new_key(ana, project_id, expires_at=utcnow() + timedelta(hours=1))
    assert caller(text)
    with transaction() as session:
        session.execute(update(ApiKey).values(expires_at=utcnow() - timedelta(seconds=1)))
    with pytest.raises(Unauthenticated):
        caller(text)


def test_a_changed_letter_makes_a_key_worthless(ana: Person, project_id: str) -> None:
    text = new_key(ana, project_id)
    for at in (3, 10, 24, len(text) - 1):
        letter = "a" if text[at] != "a" else "b"
        with pytest.raises(Unauthenticated):
            caller(text[:at] + letter + text[at + 1 :])


def test_a_key_of_one_project_opens_no_other(ana: Person, project_id: str) -> None:
    other = make_project(ana.workspace_id, "Secret recipes")
    add_run(project_id, ana.workspace_id, 1)
    add_run(other, ana.workspace_id, 1)
    assert sorted(ids(ana)) == ["secret-recipes-run-1", "support-sorter-run-1"]
    narrow, wide = new_key(ana, project_id), new_key(ana, project_id, is_for_workspace=True)
    with reading() as session:
        assert [one.id for one in names.published(session, caller(narrow).actor)] == ["support-sorter-run-1"]
        assert len(names.published(session, caller(wide).actor)) == 2
        with pytest.raises(NotFound):
            names.find(session, caller(narrow).actor, "secret-recipes-run-1")
        with pytest.raises(NotFound):
            projects.get(session, caller(narrow).actor, other)


def test_a_key_may_only_read(ana: Person, project_id: str) -> None:
    with reading() as session, pytest.raises(Forbidden):
        projects.get(session, caller(new_key(ana, project_id)).actor, project_id, need="annotator")


def test_ids_survive_a_new_name_and_never_meet(ana: Person, project_id: str) -> None:
    add_run(project_id, ana.workspace_id, 3)
    assert ids(ana) == ["support-sorter-run-3"]
    with transaction() as session:
        session.execute(update(Project).where(Project.id == project_id).values(name="Something else"))
    assert ids(ana) == ["support-sorter-run-3"]
    twin = make_project(ana.workspace_id, "Support  Sorter!")
    add_run(twin, ana.workspace_id, 3)
    assert sorted(ids(ana)) == ["support-sorter-2-run-3", "support-sorter-run-3"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Grandma's kitchen", "grandma-s-kitchen"),
        ("Äpfel & Öl", "apfel-ol"),
        ("料理", "model"),
        ("o1 helper", "model-o1-helper"),
        ("; rm -rf / $(touch x)", "rm-rf-touch-x"),
        ("../../etc", "etc"),
        ("x" * 200, "x" * 40),
    ],
)
def test_slugs_are_plain(name: str, slug: str) -> None:
    assert names.slug_of(name) == slug


def test_the_limit_holds_with_redis_and_without(broker: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.time, "time", lambda: 1_800_000_030.0)
    for subject in ("with", "without"):
        if subject == "without":
            monkeypatch.setenv("GPT_BUILDER_REDIS_URL", "unix:///nowhere/redis.sock")
            limits.get_settings.cache_clear()
        assert [limits.count(subject, limit=3) for _ in range(3)] == [2, 1, 0]
        with pytest.raises(TooMany) as refused:
            limits.count(subject, limit=3)
        assert 0 < refused.value.retry_after_s <= 60
    with broker.client() as client:
        counted = [key.decode() for key in client.keys("r:*")]
        assert len(counted) == 1
        assert 0 < client.ttl(counted[0]) <= 120


def test_a_busy_key_waits_for_the_next_minute(app: FastAPI, ana: Person, project_id: str) -> None:
    text = new_key(ana, project_id, requests_per_minute=3)
    browser = browser_of(app)
    browser.headers["authorization"] = f"Bearer {text}"
    answers = [browser.get("/v1/models") for _ in range(7)]
    assert [answer.status_code for answer in answers][:3] == [200, 200, 200]
    refused = answers[-1]
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-should-retry"] == "true"
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
