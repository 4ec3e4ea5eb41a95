"""Conversations: answers come from the real model server, are saved, compared, stopped, tried again and rated."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update

from app.chat import service
from app.chat.models import Chat, ChatMessage, Feedback
from app.chat.stream import _sse
from app.core.db import reading, transaction
from app.runs.models import Checkpoint, Run
from tests import serving, visitors
from tests.app.chat.conftest import GREEDY, Scene, a_scene, answers, ask, finished
from tests.conftest import wait_for


def test_an_answer_is_made_saved_and_shown_with_its_figures(scene: Scene) -> None:
    chat_id = ask(scene)
    (answer,) = finished(chat_id)
    assert answer.state == "done", answer.error
    assert answer.statistics["completion_tokens"] == 24
    assert answer.statistics["finish_reason"] == "length"
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "How do I reset my password?" in page
    assert f'id="t-{answer.id}"' in page
    assert "hx-sse:connect" not in page, "a finished page is quiet"
    assert "Cut at the longest reply" in page


def test_an_answer_that_fills_the_models_memory_says_so(
    app: FastAPI, scene: Scene, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    short = a_scene(app, (serving.endless_model(tmp_path / "short", context_length=128), folders[1]))
    with short.client:
        chat_id = ask(short, "Hi", max_tokens="2000", odds="on")
        (answer,) = finished(chat_id)
        page = short.client.get(f"/chats/{chat_id}").text
    assert answer.statistics["finish_reason"] == "memory"
    assert "this model looks at 128 tokens at once" in page
    assert "Raise it in the reply settings" not in page, "no setting makes it longer"
    assert "<dd>its full memory</dd>" in page


def test_blanks_among_the_probabilities_are_seen(scene: Scene) -> None:
    chat_id = ask(scene, odds="on")
    (answer,) = finished(chat_id)
    odds = [{"token": " ", "p": 0.44, "top": [["\n", 0.54], [" ", 0.44]]}]
    with transaction() as session:
        session.get_one(ChatMessage, answer.id).statistics = answer.statistics | {"odds": odds, "total_s": 0.03}
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "<code>␣</code>" in page
    assert "<code>↵</code> 54 %" in page
    assert "0.03 s</small>" in page, "an answer takes some time"


def test_the_same_question_gives_the_same_greedy_answer_and_the_conversation_is_read(scene: Scene) -> None:
    first = finished(ask(scene))[0]
    again = finished(ask(scene))[0]
    assert first.content == again.content
    assert first.content
    chat_id = ask(scene)
    finished(chat_id)
    ask(scene, "And my card?", chat_id)
    second = finished(chat_id, 2)[1]
    alone = finished(ask(scene, "And my card?"))[0]
    assert second.statistics["prompt_tokens"] > alone.statistics["prompt_tokens"] + 24


def test_a_window_that_lacks_a_turn_is_loaded_anew(scene: Scene) -> None:
    chat_id = ask(scene)
    finished(chat_id)
    seen = re.findall(r'name="seen" value="(\w+)"', scene.client.get(f"/chats/{chat_id}").text)
    form = {"message": "And my card?", "model": scene.model, **GREEDY, "seen": seen}
    here = scene.client.post(f"/chats/{chat_id}", data=form, headers={"hx-request-type": "partial"})
    assert here.status_code == 200
    assert "And my card?" in here.text
    finished(chat_id, 2)
    # Another window was opened before that.
    there = scene.client.post(f"/chats/{chat_id}", data=form, headers={"hx-request-type": "partial"})
    assert there.status_code == 204
    assert there.headers["hx-redirect"] == f"/chats/{chat_id}"
    assert len(finished(chat_id, 3)) == 3


def test_the_page_says_how_full_the_memory_is(scene: Scene) -> None:
    chat_id = ask(scene)
    figures = finished(chat_id)[0].statistics
    used = figures["prompt_tokens"] + figures["completion_tokens"]
    assert f"{used} of 8,192 tokens used" in scene.client.get(f"/chats/{chat_id}").text


def test_live_events_send_whole_blocks_then_the_article(scene: Scene) -> None:
    chat_id = ask(scene, max_tokens="400")
    (answer,) = answers(chat_id)
    assert f"/chats/messages/{answer.id}/events" in scene.client.get(f"/chats/{chat_id}").text
    stream = scene.client.get(f"/chats/messages/{answer.id}/events").text
    assert stream.endswith("event: done\ndata: done\n\n")
    upserts = re.findall(rf'<hx-upsert hx-target="#t-{answer.id}">', stream)
    assert len(upserts) > 1, "the text came in pieces"
    assert f'<hx-partial hx-target="#m-{answer.id}"' in stream
    assert "of 8,192 tokens used" in stream, "the memory's figures come with it"
    # Replaying the stream later gives only the finished article: a reload loses and doubles nothing.
    later = scene.client.get(f"/chats/messages/{answer.id}/events").text
    assert "<hx-upsert" not in later
    assert f'<hx-partial hx-target="#m-{answer.id}"' in later


def test_stop_keeps_what_was_said(scene: Scene) -> None:
    chat_id = ask(scene, max_tokens="4000")
    (answer,) = answers(chat_id)
    wait_for(lambda: answers(chat_id)[0].content, "some text is saved")
    assert scene.client.post(f"/chats/messages/{answer.id}/stop").status_code == 303
    (stopped,) = finished(chat_id)
    assert stopped.state == "stopped"
    assert stopped.content
    assert "Stopped by you." in scene.client.get(f"/chats/{chat_id}").text


def test_a_second_question_waits_for_the_first_answer(scene: Scene) -> None:
    chat_id = ask(scene, max_tokens="4000")
    form = {"message": "Hurry up", "model": scene.model, **GREEDY}
    assert scene.client.post(f"/chats/{chat_id}", data=form).status_code == 409
    scene.client.post(f"/chats/messages/{answers(chat_id)[0].id}/stop")
    finished(chat_id)


def test_a_checkpoint_of_an_ended_run_is_asked_itself_not_the_newest_model(scene: Scene) -> None:
    with transaction() as session:
        run = session.scalars(select(Run)).one()
        row = Checkpoint(run_id=run.id, attempt_id=run.id, fence=1, step=60, dir="checkpoints/step-00000060",
            manifest_sha256="c" * 64, size_bytes=1)  # fmt: skip
        session.add(row)
        session.flush()
        ref = f"checkpoint:{row.id}"
    page = scene.client.get(f"/projects/{scene.project_id}/chat?model={ref}").text
    assert f'<option value="{ref}" selected>' in page
    assert page.index('value="model:') < page.index(f'value="{ref}"') < page.index('value="base:')
    assert "no longer kept" not in page
    # Retention may delete it while somebody chats with it.
    with transaction() as session:
        session.execute(update(Checkpoint).values(state="removed"))
    page = scene.client.get(f"/projects/{scene.project_id}/chat?model={ref}").text
    assert "no longer kept. The next answer comes from" in page


def test_base_and_tuned_answer_side_by_side(scene: Scene) -> None:
    chat_id = ask(scene, compare=scene.base)
    answers = finished(chat_id, 2)
    assert {m.model_ref for m in answers} == {scene.model, scene.base}
    assert answers[0].content != answers[1].content
    page = scene.client.get(f"/chats/{chat_id}").text
    assert 'class="chat-pair"' in page
    assert "Starter" in page


def test_try_again_keeps_the_earlier_answer_out_of_sight(scene: Scene) -> None:
    chat_id = ask(scene, temperature="1.5")
    (first,) = finished(chat_id)
    assert scene.client.post(f"/chats/messages/{first.id}/again").status_code == 303
    answers = finished(chat_id, 2)
    page = scene.client.get(f"/chats/{chat_id}").text
    new = next(m for m in answers if m.id != first.id)
    assert new.content != first.content, "each try draws anew"
    assert f'id="m-{new.id}"' in page
    assert f'id="m-{first.id}"' not in page


def test_a_thumb_and_a_note_are_kept_and_changed(scene: Scene) -> None:
    chat_id = ask(scene)
    (answer,) = finished(chat_id)
    address = f"/chats/messages/{answer.id}/feedback"
    fragment = scene.client.post(address, data={"thumb": "-1"}, headers={"hx-request-type": "partial"})
    assert 'name="note"' in fragment.text
    scene.client.post(address, data={"thumb": "-1", "note": "Too short <b>"})
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "Too short &lt;b&gt;" in page
    with reading() as session:
        kept = session.scalars(select(Feedback)).one()
    assert (kept.thumb, kept.note, kept.user_id) == (-1, "Too short <b>", scene.person.user_id)


def test_tags_go_with_their_thumb_and_a_note_can_be_taken_back(scene: Scene) -> None:
    (answer,) = finished(ask(scene))
    address = f"/chats/messages/{answer.id}/feedback"

    def said(**form: str | list[str]) -> tuple[int, list[str], str]:
        assert scene.client.post(address, data=form).status_code == 303
        with reading() as session:
            kept = session.scalars(select(Feedback)).one()
            return kept.thumb, kept.tags, kept.note

    assert said(thumb="-1", tags=["", "untrue", "long"], note="No") == (-1, ["untrue", "long"], "No")
    assert "Not true" in scene.client.get(f"/projects/{scene.project_id}/refine").text
    assert said(thumb="-1") == (-1, ["untrue", "long"], "No"), "only the thumb was sent"
    assert said(thumb="-1", tags="", note="") == (-1, [], ""), "all was taken back"
    assert said(thumb="-1", tags=["", "long"], note="") == (-1, ["long"], "")
    assert said(thumb="1") == (1, [], "")
    assert scene.client.post(address, data={"thumb": "1", "tags": "x"}).status_code == 422


def test_conversations_are_found_renamed_deleted_and_brought_back(scene: Scene) -> None:
    soup, card = ask(scene, "A soup with tomatoes"), ask(scene, "Where is my card?")
    finished(soup)
    finished(card)
    listing = f"/projects/{scene.project_id}/chats"
    assert f"/chats/{soup}" in scene.client.get(listing, params={"q": "TOMATO"}).text
    assert f"/chats/{card}" not in scene.client.get(listing, params={"q": "TOMATO"}).text
    assert "Nothing matches" in scene.client.get(listing, params={"q": "100%"}).text
    assert scene.client.post(f"/chats/{soup}/title", data={"title": " \u202e\u200b "}).status_code == 422
    scene.client.post(f"/chats/{soup}/title", data={"title": "\u202eDin\u200bner\r\n"})
    assert ">Dinner</a>" in scene.client.get(listing).text
    scene.client.post(f"/chats/{soup}/delete")
    assert scene.client.get(f"/chats/{soup}").status_code == 404
    assert "Dinner" not in scene.client.get(listing).text
    scene.client.post(f"/chats/{soup}/restore")
    assert "Dinner" in scene.client.get(listing).text


def test_the_search_gives_a_whole_page_to_a_browser_without_scripts(scene: Scene) -> None:
    found = ask(scene, "Where is the blue parrot?")
    other = ask(scene, "What is soup?")
    finished(found), finished(other)
    page = scene.client.get(f"/projects/{scene.project_id}/chats?q=parrot").text
    assert page.startswith("<!doctype html>")
    assert f'href="/chats/{found}"' in page
    assert f'href="/chats/{other}"' not in page
    assert 'value="parrot"' in page


def test_changed_settings_count_for_a_further_version_of_an_answer(scene: Scene) -> None:
    chat_id = ask(scene)
    (first,) = finished(chat_id)
    changed = {**GREEDY, "max_tokens": "3", "seed": "", "stop": "one\r\n\r\ntwo words", "top_p": "0.9", "message": ""}
    assert scene.client.post(f"/chats/{chat_id}/settings", data=changed).status_code == 204
    scene.client.post(f"/chats/messages/{first.id}/again")
    _, second = finished(chat_id, 2)
    assert second.statistics["completion_tokens"] == 3
    page = scene.client.get(f"/chats/{chat_id}").text
    assert "one\ntwo words</textarea>" in page
    assert scene.client.post(f"/chats/{chat_id}/settings", data={"top_p": "0"}).status_code == 422
    with reading() as session:
        kept = session.get_one(Chat, chat_id).sampling
    assert (kept["stop"], kept["top_p"], kept["seed"]) == (["one", "two words"], 0.9, None)


def test_a_seed_gives_the_same_answer_again(scene: Scene) -> None:
    wild = {"temperature": "1.5", "max_tokens": "12"}
    said = [finished(ask(scene, **wild, seed=seed))[0].content for seed in ("7", "7", "8")]
    assert said[0] == said[1] != said[2]


def test_hostile_text_is_inert_everywhere(scene: Scene) -> None:
    hostile = '<img src=x onerror=alert(1)> [x](javascript:alert(2)) ![y](https://e.example/?d=1) <b hx-get="/">z</b>'
    chat_id = ask(scene, hostile)
    (answer,) = finished(chat_id)
    with transaction() as session:
        session.execute(update(ChatMessage).where(ChatMessage.id == answer.id).values(content=hostile))
    page = scene.client.get(f"/chats/{chat_id}").text
    body = page.split('id="chat-list"')[1].split("<chat-composer")[0]
    assert "<img" not in body
    assert 'href="javascript' not in body
    assert "<b hx-get" not in body


def test_a_page_costs_the_same_queries_however_long_the_talk(scene: Scene) -> None:
    chat_id = ask(scene)
    finished(chat_id)
    ask(scene, "More", chat_id)
    finished(chat_id, 2)
    with reading() as session:
        chat = session.get_one(Chat, chat_id)
        assert [turn.question.content for turn in service.turns(session, chat)] == [
            "How do I reset my password?",
            "More",
        ]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": "nan"}, {"max_tokens": "1000000000"}, {"message": ""}, {"message": "x" * 20_001}],
    ids=["nan", "huge", "empty", "long"],
)
def test_wrong_settings_are_answered_with_the_filled_page(scene: Scene, wrong: dict[str, str]) -> None:
    form = {"message": "Hello", "model": scene.model, **GREEDY, **wrong}
    answer = scene.client.post(f"/projects/{scene.project_id}/chat", data=form)
    assert answer.status_code == 422
    assert "field-error" in answer.text


def test_no_character_of_a_text_can_end_a_live_event() -> None:
    framed = _sse("<p>a\r\rdata: forged\n\nevent: done</p>\u2028\x0b\x85end").decode()
    assert framed.endswith("\n\n")
    assert framed.count("\n\n") == 1
    lines = framed.rstrip("\n").split("\n")
    assert all(line.startswith("data: ") for line in lines)
    assert "".join(line.removeprefix("data: ") for line in lines) == "<p>adata: forgedevent: done</p>\u2028\x0b\x85end"


def test_a_stranger_finds_nothing(scene: Scene, app: FastAPI) -> None:
    chat_id = ask(scene)
    (answer,) = finished(chat_id)
    stranger = visitors.browser_of(app, visitors.make_person("Eve", "owner"))
    for address in (f"/chats/{chat_id}", f"/chats/messages/{answer.id}/events"):
        assert stranger.get(address).status_code == 404
