"""An answer of a chat becomes a test of the project: once, with what was said before it, and the answer people want."""

from sqlalchemy import select

from app.core.db import reading
from app.evaluations.models import TestCase
from tests.app.chat.conftest import Scene, ask, finished


def _tests() -> list[TestCase]:
    with reading() as session:
        return list(session.scalars(select(TestCase).order_by(TestCase.created_at)))


def test_a_good_answer_is_the_ideal_one_and_is_kept_once(scene: Scene) -> None:
    chat_id = ask(scene, "First?")
    (first,) = finished(chat_id)
    ask(scene, "Second?", chat_id)
    answer = finished(chat_id, 2)[1]
    for _ in range(2):
        assert scene.client.post(f"/chats/messages/{answer.id}/test").status_code == 303
    (test,) = _tests()
    assert [(m["role"], m["content"]) for m in test.messages] == [
        ("system", "Be kind."), ("user", "First?"), ("assistant", first.content), ("user", "Second?"),
    ]  # fmt: skip
    assert test.ideal == answer.content.strip()
    page = scene.client.get(f"/projects/{scene.project_id}/evaluate").text
    assert "Second?" in page
    scene.client.post(f"/tests/{test.id}", data={"ideal": "Two <b>hours</b>."})
    assert "Two &lt;b&gt;hours" in scene.client.get(f"/projects/{scene.project_id}/evaluate").text
    scene.client.post(f"/tests/{test.id}/delete")
    assert _tests() == []


def test_of_a_bad_answer_the_better_one_is_wanted(scene: Scene) -> None:
    (answer,) = finished(ask(scene))
    scene.client.post(f"/chats/messages/{answer.id}/feedback", data={"thumb": "-1"})
    scene.client.post(f"/chats/messages/{answer.id}/test")
    (test,) = _tests()
    assert test.ideal == ""
    assert "this question is not asked" in scene.client.get(f"/projects/{scene.project_id}/evaluate").text
    scene.client.post(f"/tests/{test.id}/delete")
    scene.client.post(f"/chats/messages/{answer.id}/correction", data={"correction": "On Monday."})
    scene.client.post(f"/chats/messages/{answer.id}/test")
    assert [one.ideal for one in _tests()] == ["On Monday."]


def test_only_an_answer_that_is_shown_becomes_a_test(scene: Scene) -> None:
    chat_id = ask(scene)
    (first,) = finished(chat_id)
    scene.client.post(f"/chats/messages/{first.id}/again")
    finished(chat_id, 2)
    assert scene.client.post(f"/chats/messages/{first.id}/test").status_code == 409
    assert _tests() == []
