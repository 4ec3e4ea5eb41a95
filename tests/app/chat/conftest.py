"""Somebody with a trained model and its base, the real model server and Redis."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.chat.models import ChatMessage
from app.core.config import get_settings
from app.core.db import reading
from tests import serving, visitors
from tests.conftest import wait_for
from tests.visitors import Person

GREEDY = {"temperature": "0", "max_tokens": "24", "system_prompt": "Be kind."}


@dataclass(frozen=True)
class Scene:
    """A person, their project, and the references of its model and of what it was trained from."""

    person: Person
    project_id: str
    model: str
    base: str
    client: TestClient


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("models")
    return serving.endless_model(made / "tuned"), serving.endless_model(made / "base", seed=1)


@pytest.fixture(scope="package")
def socket() -> Iterator[Path]:
    with serving.model_server() as server:
        yield server.socket


@pytest.fixture
def scene(
    app: FastAPI, broker: object, socket: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(socket))
    get_settings.cache_clear()
    made = a_scene(app, folders)
    with made.client:  # one event loop for all requests, as in the real process
        yield made


def a_scene(app: FastAPI, folders: tuple[Path, Path]) -> Scene:
    """The rows of a scene."""
    person = visitors.make_person("Ana", "owner")
    project_id = visitors.make_project(person.workspace_id)
    model = serving.a_trained_model(person.workspace_id, project_id, *folders)
    client = visitors.browser_of(app, person)
    page = client.get(f"/projects/{project_id}/chat").text
    base = page.split('<option value="base:')[1].split('"')[0]
    return Scene(person, project_id, model, f"base:{base}", client)


def ask(scene: Scene, message: str = "How do I reset my password?", chat_id: str = "", **more: str) -> str:
    """Ask and return the chat's id."""
    form = {"message": message, "model": scene.model, **GREEDY, **more}
    address = f"/chats/{chat_id}" if chat_id else f"/projects/{scene.project_id}/chat"
    answer = scene.client.post(address, data=form)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"].rsplit("/", 1)[1]


def answers(chat_id: str) -> list[ChatMessage]:
    """The answers of a conversation, in order."""
    with reading() as session:
        query = select(ChatMessage).where(ChatMessage.chat_id == chat_id, ChatMessage.role == "assistant")
        return list(session.scalars(query.order_by(ChatMessage.position, ChatMessage.created_at)))


def finished(chat_id: str, count: int = 1) -> list[ChatMessage]:
    """The same, once there are so many and none is being made."""

    def ready() -> list[ChatMessage]:
        found = answers(chat_id)
        return found if len(found) == count and all(m.state != "streaming" for m in found) else []

    return wait_for(ready, "the answers are finished")
