"""A conversation is a tree: versions of questions and answers, votes on answers side by side, files to take away."""

import json

from app.chat import service
from app.chat.models import Chat
from app.core.db import reading
from tests.app.chat.conftest import Scene, ask, finished


def _shown(scene: Scene, chat_id: str) -> list[tuple[str, list[str]]]:
    """The questions and the ids of their answers, as the page shows them."""
    with reading() as session:
        turns = service.turns(session, session.get_one(Chat, chat_id))
        return [(turn.question.content, [answer.id for answer in turn.answers]) for turn in turns]


def _questions(scene: Scene, chat_id: str) -> list[str]:
    with reading() as session:
        return [turn.question.id for turn in service.turns(session, session.get_one(Chat, chat_id))]


def test_an_edited_question_begins_a_branch_and_the_old_one_comes_back_whole(scene: Scene) -> None:
    chat_id = ask(scene, "First?")
    finished(chat_id)
    ask(scene, "Second?", chat_id)
    finished(chat_id, 2)
    before = _shown(scene, chat_id)
    old = _questions(scene, chat_id)[0]
    answer = scene.client.post(f"/chats/messages/{old}/edit", data={"message": "Another first?"})
    assert answer.status_code == 303, answer.text
    finished(chat_id, 3)
    assert [question for question, _ in _shown(scene, chat_id)] == ["Another first?"]
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "2 of 2" in page
    assert f"/chats/messages/{old}/choose" in page
    assert "Second?" not in page
    ask(scene, "Third?", chat_id)
    finished(chat_id, 4)
    assert [question for question, _ in _shown(scene, chat_id)] == ["Another first?", "Third?"]
    scene.client.post(f"/chats/messages/{old}/choose")
    assert _shown(scene, chat_id) == before


def test_what_followed_an_answer_stays_with_it(scene: Scene) -> None:
    chat_id = ask(scene, "First?", temperature="1.5")
    (first,) = finished(chat_id)
    ask(scene, "Second?", chat_id)
    finished(chat_id, 2)
    scene.client.post(f"/chats/messages/{first.id}/again")
    finished(chat_id, 3)
    assert [question for question, _ in _shown(scene, chat_id)] == ["First?"]
    assert "2 of 2" in scene.client.get(f"/chats/{chat_id}").text
    scene.client.post(f"/chats/messages/{first.id}/choose")
    assert [question for question, _ in _shown(scene, chat_id)] == ["First?", "Second?"]


def test_a_blind_comparison_tells_the_names_after_the_vote(scene: Scene) -> None:
    chat_id = ask(scene, compare=scene.base, blind="on")
    answers = finished(chat_id, 2)
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "<h2>Answer A</h2>" in page
    assert "<h2>Answer B</h2>" in page
    assert "<h2>Starter</h2>" not in page
    assert "tokens/s" not in page, "speed would tell which is which"
    live = scene.client.get(f"/chats/messages/{answers[0].id}/events").text
    assert "<h2>Answer" in live
    text = scene.client.get(f"/chats/{chat_id}/export").text
    assert "Starter" not in text
    best = next(one for one in answers if one.model_ref == scene.base)
    scene.client.post(f"/chats/messages/{best.id}/vote")
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "<h2>Starter</h2>" in page
    assert "You preferred Starter." in page


def test_votes_call_answers_as_their_heads_do(scene: Scene) -> None:
    for blind, seen, unseen in (("on", "Answer A", "Starter"), ("", "Starter", "Answer A")):
        chat_id = ask(scene, compare=scene.base, **({"blind": blind} if blind else {}))
        finished(chat_id, 2)
        vote = scene.client.get(f"/chats/{chat_id}").text.split('class="chat-vote')[1].split("They are equal")[0]
        assert seen in vote
        assert unseen not in vote


def test_a_conversation_is_taken_away_as_it_is_shown(scene: Scene) -> None:
    chat_id = ask(scene, "First <b>?", compare=scene.base)
    answers = finished(chat_id, 2)
    text = scene.client.get(f"/chats/{chat_id}/export?as=md").text
    assert text.startswith("# First")
    assert all(answer.content.strip() in text for answer in answers)
    rows = [json.loads(line) for line in scene.client.get(f"/chats/{chat_id}/export?as=jsonl").text.splitlines()]
    assert [[m["role"] for m in row["messages"]] for row in rows] == [["system", "user", "assistant"]] * 2
    assert {row["messages"][2]["content"] for row in rows} == {answer.content for answer in answers}


def test_probabilities_of_an_answer_are_kept_where_asked_for(scene: Scene) -> None:
    (plain,) = finished(ask(scene))
    assert "odds" not in plain.statistics
    chat_id = ask(scene, odds="on")
    (answer,) = finished(chat_id)
    odds = answer.statistics["odds"]
    assert len(odds) == answer.statistics["completion_tokens"]
    # Greedy: each token is the likeliest in its place.
    assert all(one["p"] == one["top"][0][1] for one in odds)
    assert "Likeliest here" in scene.client.get(f"/chats/{chat_id}").text
