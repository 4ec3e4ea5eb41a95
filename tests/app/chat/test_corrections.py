"""A badly rated answer is written better on the refine page, kept, and becomes a row of the next version."""

import json

import pytest
from fastapi import FastAPI
from sqlalchemy import select

from app.chat.models import Chat, ChatMessage, Feedback
from app.core.db import reading, transaction
from app.datasets import service as datasets
from app.datasets.models import SourceFile
from tests.visitors import Person, browser_of, make_person, make_project

BETTER = "Two hours at a low heat.\nThen ten minutes to rest."


@pytest.fixture
def rated(database: object) -> tuple[Person, str, list[str]]:
    """An editor, a project, and two answers: the first rated bad by two people, the second good."""
    ana = make_person("Ana", "editor")
    ben = make_person("Ben", "annotator", ana.workspace_id)
    project_id = make_project(ana.workspace_id)
    answers = []
    with transaction() as session:
        chat = Chat(project_id=project_id, title="Soup")
        session.add(chat)
        session.flush()
        for place, (question, said) in enumerate([("How long?", "For ever."), ("And rice?", "Twelve minutes.")]):
            asked = ChatMessage(chat_id=chat.id, position=2 * place, role="user", content=question)
            session.add(asked)
            session.flush()
            answer = ChatMessage(
                chat_id=chat.id, parent_id=asked.id, position=2 * place + 1, role="assistant", content=said
            )
            session.add(answer)
            session.flush()
            answers.append(answer.id)
        session.add_all(
            [
                Feedback(message_id=answers[0], user_id=ana.user_id, thumb=-1, note="That is no time."),
                Feedback(message_id=answers[0], user_id=ben.user_id, thumb=-1),
                Feedback(message_id=answers[1], user_id=ana.user_id, thumb=1),
            ]
        )
    return ana, project_id, answers


def files_of(project_id: str) -> list[SourceFile]:
    with reading() as session:
        return list(session.scalars(select(SourceFile).where(SourceFile.project_id == project_id)))


def test_a_better_answer_is_kept_and_becomes_one_row(app: FastAPI, rated: tuple[Person, str, list[str]]) -> None:
    ana, project_id, (bad, good) = rated
    browser = browser_of(app, ana)
    refine = f"/projects/{project_id}/refine"
    page = browser.get(refine).text
    assert page.count(f'action="/chats/messages/{bad}/correction"') == 1, "one form, however many found it bad"
    assert good + "/correction" not in page
    assert f"/projects/{project_id}/corrections" not in page, "nothing to bring yet"
    assert browser.post(f"/projects/{project_id}/corrections").status_code == 409

    saved = browser.post(f"/chats/messages/{bad}/correction", data={"correction": BETTER.replace("\n", "\r\n")})
    assert saved.headers["location"] == f"{refine}#answer-{bad}"
    assert BETTER in browser.get(refine).text
    brought = browser.post(f"/projects/{project_id}/corrections")
    assert brought.headers["location"] == f"/projects/{project_id}/data"
    (file,) = files_of(project_id)
    assert (file.origin, file.filename, file.state) == ("corrections", "Corrections.jsonl", "queued")
    rows = [json.loads(line) for line in datasets.original_path(file).read_text().splitlines()]
    assert rows == [{"question": "How long?", "answer": BETTER}]
    assert "corrections" in browser.get(f"/projects/{project_id}/sources").text


def test_bringing_again_replaces_what_was_brought_before(app: FastAPI, rated: tuple[Person, str, list[str]]) -> None:
    ana, project_id, (bad, _good) = rated
    browser = browser_of(app, ana)
    for text in ("Two hours.", "Two hours.", "Three hours."):
        browser.post(f"/chats/messages/{bad}/correction", data={"correction": text})
        assert browser.post(f"/projects/{project_id}/corrections").status_code == 303
    files = files_of(project_id)
    assert len(files) == 2
    (shown,) = [file for file in files if file.deleted_at is None]
    assert b"Three hours." in datasets.original_path(shown).read_bytes()


def test_it_can_be_taken_back_and_only_bad_answers_have_one(app: FastAPI, rated: tuple[Person, str, list[str]]) -> None:
    ana, project_id, (bad, good) = rated
    ben = make_person("Cleo", "annotator", ana.workspace_id)
    browser = browser_of(app, ben)
    assert browser.post(f"/chats/messages/{good}/correction", data={"correction": "No."}).status_code == 409
    assert browser.post(f"/chats/messages/{bad}/correction", data={"correction": "x" * 20_001}).status_code == 422
    browser.post(f"/chats/messages/{bad}/correction", data={"correction": "Two hours."})
    page = browser.get(f"/projects/{project_id}/refine").text
    assert "needs the role editor" in page
    browser.post(f"/chats/messages/{bad}/correction", data={"correction": " "})
    with reading() as session:
        assert {row.correction for row in session.scalars(select(Feedback))} == {""}
