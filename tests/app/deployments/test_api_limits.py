"""What the API promises around an answer: asked once, counted, limited, ended when nobody may or will read it."""

import asyncio
import fcntl
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.accounts.service import Actor
from app.contracts.generation import TokenEvent, Waiting
from app.core import lives
from app.core.db import new_id, transaction
from app.core.errors import Unavailable
from app.deployments import keys, stream, wire
from app.deployments.calls import Facts
from app.deployments.keys import Caller
from app.projects.models import Project
from tests.app.deployments.conftest import ASK, Stack, add_model, at_home, body, inside, key_of
from tests.conftest import wait_for
from tests.serving import endless_model
from tests.visitors import browser_of, make_person, make_project


def test_the_same_idempotency_key_asks_once(stack: Stack) -> None:
    headers = {"idempotency-key": "order-77"}
    with stack.client() as client:
        first = client.post("/v1/chat/completions", json=body(stack, temperature=1), headers=headers)
        second = client.post("/v1/chat/completions", json=body(stack, temperature=1), headers=headers)
        other = client.post("/v1/chat/completions", json=body(stack, temperature=0.5), headers=headers)
        failing = {"idempotency-key": "order-78"}
        client.post("/v1/chat/completions", json=body(stack) | {"model": "nothing-run-1"}, headers=failing)
        retried = client.post("/v1/chat/completions", json=body(stack), headers=failing)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert other.status_code == 400
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert retried.status_code == 200


def test_a_request_whose_process_died_may_be_sent_again_at_once(stack: Stack) -> None:
    headers = {"idempotency-key": "order-79"}
    left = stack.home / "locks" / "life-gone.lock"
    with stack.client() as client:
        client.post("/v1/chat/completions", json=body(stack), headers=headers)

        def asked_again(life: str) -> int:
            with sqlite3.connect(stack.home / "gpt-builder.db") as database:
                database.execute("UPDATE idempotent_answers SET answer = NULL, maker = ?", (life,))
            return client.post("/v1/chat/completions", json=body(stack), headers=headers).status_code

        left.touch()
        with left.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert asked_again(f"{lives._machine()}:gone") == 409
        assert asked_again(f"{lives._machine()}:gone") == 200


def test_ten_at_once_with_one_idempotency_key_make_one_answer(stack: Stack) -> None:
    def ask(_: int) -> tuple[int, str]:
        with stack.client() as client:
            answer = client.post(
                "/v1/chat/completions", json=body(stack, temperature=1), headers={"idempotency-key": "crowd"}
            )
            return answer.status_code, answer.json().get("id", "")

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, range(10)))
    assert {status for status, _ in found} <= {200, 409}
    assert len({name for status, name in found if status == 200}) == 1


def test_calls_are_counted_without_their_texts(stack: Stack) -> None:
    question = "a very particular question about soup"
    with stack.client() as client:
        client.post("/v1/chat/completions", json=body(stack, messages=[{"role": "user", "content": question}]))

    def newest() -> Any:
        with sqlite3.connect(stack.home / "gpt-builder.db") as database:
            return database.execute(
                "SELECT model_ref, status, prompt_tokens, completion_tokens, total_s, project_id FROM api_calls"
                " WHERE status = 200 ORDER BY at DESC LIMIT 1"
            ).fetchone()

    model, status, read, made, total_s, project_id = wait_for(newest, "the call is written down")
    assert (model, status, project_id) == (stack.model, 200, stack.project_id)
    assert read > 0
    assert made > 0
    assert total_s > 0
    with sqlite3.connect(stack.home / "gpt-builder.db") as database:
        rows = list(database.execute("SELECT * FROM api_calls"))
        assert question not in str(rows)
        assert database.execute("SELECT last_used_at FROM api_keys WHERE last_used_at IS NOT NULL").fetchone()
        dump = "\n".join(database.iterdump())
    assert stack.key not in dump
    assert stack.key.split("_", 1)[1] not in dump


def test_a_client_that_leaves_frees_the_model(stack: Stack) -> None:
    long = body(stack, max_tokens=30_000, stream=True, temperature=1)
    with stack.client() as client, client.stream("POST", "/v1/chat/completions", json=long) as answer:
        next(answer.iter_raw())
    left_at = time.monotonic()
    wait_for(lambda: active(stack) == 0, "the model is free again")
    assert time.monotonic() - left_at < 10


def test_tokens_of_a_minute_and_of_a_month_run_out(stack: Stack) -> None:
    with stack.client(key_of(stack, tokens_per_minute=5)) as http:
        first = http.post("/v1/chat/completions", json=body(stack))
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-tokens"] == "5"
        assert first.headers["x-ratelimit-remaining-tokens"] == "5"
        wait_for(lambda: http.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == "0", "tokens are counted")
        second = http.post("/v1/chat/completions", json=body(stack))
        # Unless the clock's minute turned over just now: then the window is a new one.
        if second.headers.get("x-ratelimit-remaining-tokens") == "0":
            assert second.status_code == 429
            assert second.json()["error"]["code"] == "rate_limit_exceeded"
            assert 0 < float(second.headers["retry-after"]) <= 60
    with stack.client(key_of(stack, monthly_tokens=5)) as http:
        assert http.post("/v1/chat/completions", json=body(stack)).status_code == 200

        def refused() -> Any:
            answer = http.post("/v1/completions", json={"model": stack.model, "prompt": "a", "max_tokens": 1})
            return answer if answer.status_code == 429 else None

        assert wait_for(refused, "the budget is used up").json()["error"]["code"] == "insufficient_quota"


def active(stack: Stack) -> int:
    """Answers in the making or waiting at the model server."""
    transport = httpx.HTTPTransport(uds=str(stack.home / "sockets" / "model.sock"))
    with httpx.Client(transport=transport, base_url="http://model") as client:
        health = client.get("/health").json()
    return int(health["active"]) + int(health["waiting"])


@contextmanager
def endless(stack: Stack, folder: Path) -> Iterator[tuple[str, str, str]]:
    """A key of a project whose model never ends by itself: the key, its id, and a model. The model server is let go on
    at the end, whatever happened."""
    with inside(stack) as session:
        project = Project(workspace_id=stack.owner.workspace_id, name=f"Endless {new_id()}")
        session.add(project)
        session.flush()
        project_id = project.id
    with at_home(stack):
        add_model(project_id, stack.owner.workspace_id, endless_model(folder))
    with inside(stack) as session:
        key = keys.make(session, stack.owner.actor, project_id, name="a program", scopes=["read", "chat"])[1]
    with stack.client(key) as http:
        model = http.get("/v1/models").json()["data"][0]["id"]
    try:
        yield key, key[3:23], model
    finally:
        stack.model_server.send_signal(signal.SIGCONT)


def revoke(stack: Stack, key_id: str) -> None:
    with inside(stack) as session:
        keys.revoke(session, stack.owner.actor, key_id)


def test_revoking_a_key_ends_its_open_stream(stack: Stack, tmp_path: Path) -> None:
    with endless(stack, tmp_path) as (key, key_id, model), stack.client(key) as http:
        asked = body(stack, model=model, max_tokens=8000, stream=True)
        with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            stack.model_server.send_signal(signal.SIGSTOP)  # nothing but the revoked key can end the answer now
            revoke(stack, key_id)
            told = [line for line in lines if line.startswith("data: ")]
        error = json.loads(told[-1][6:])["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert "data: [DONE]" not in told
        stack.model_server.send_signal(signal.SIGCONT)
        wait_for(lambda: active(stack) == 0, "the model is free again")
        assert http.get("/v1/models").status_code == 401


def test_revoking_a_key_ends_its_whole_answer(stack: Stack, tmp_path: Path) -> None:
    with endless(stack, tmp_path) as (key, key_id, model), stack.client(key) as http, ThreadPoolExecutor(1) as pool:
        asked = body(stack, model=model, max_tokens=8000)
        answer = pool.submit(http.post, "/v1/chat/completions", json=asked)
        wait_for(lambda: active(stack) == 1, "the answer is in the making")
        stack.model_server.send_signal(signal.SIGSTOP)
        revoke(stack, key_id)
        assert answer.result().status_code == 401
        assert answer.result().json()["error"]["code"] == "invalid_api_key"


class Loading(stream.Completion):
    """An answer of a model that is read from disk for ever."""

    def __init__(self) -> None:
        async def events() -> stream.Events:
            while True:
                yield 0, TokenEvent(waiting=Waiting(why="loading"))

        caller = Caller(Actor(None), "", (), 1)
        super().__init__(caller, wire.ChatRequest(model="m", messages=ASK), Facts("chat"), "d", events())


@pytest.mark.parametrize("way", ["begin", "whole"])
def test_a_model_that_loads_for_too_long_is_unavailable(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(stream, "LOADING_PATIENCE_S", 0.0)
    with pytest.raises(Unavailable) as refused:
        asyncio.run(getattr(Loading(), way)())
    assert (refused.value.status, refused.value.error_code) == (503, "model_loading")
    assert refused.value.retry_after_s > 0


def test_without_a_model_server_clients_are_told_to_come_back(app: FastAPI, tmp_path: Path) -> None:
    owner = make_person()
    project_id = make_project(owner.workspace_id, "Support sorter")
    (tmp_path / "empty").mkdir()
    add_model(project_id, owner.workspace_id, tmp_path / "empty")
    with transaction() as session:
        key = keys.make(session, owner.actor, project_id, name="a program", scopes=["chat"])[1]
    browser = browser_of(app)
    browser.headers["authorization"] = f"Bearer {key}"
    asked = {"model": "support-sorter-run-1", "messages": ASK}
    for more in ({}, {"stream": True}):
        answer = browser.post("/v1/chat/completions", json=asked | more)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"
        assert answer.headers["x-request-id"]
        assert answer.json()["error"]["type"] == "server_error"
