"""External models on pages: who sees them, where they stand in the chat, and that nothing of their key is shown."""

import pytest
from fastapi import FastAPI

from app.core import security
from app.core.db import transaction, utcnow
from app.core.forms import checked
from app.externals.forms import ExternalForm
from app.externals.models import ExternalModel
from tests import visitors


def test_the_chat_offers_it_and_says_who_reads_along(app: FastAPI) -> None:
    ana = visitors.make_person("Ana", "owner")
    project_id = visitors.make_project(ana.workspace_id)
    with transaction() as session:
        row = ExternalModel(
            workspace_id=ana.workspace_id, name="Big one", url="https://api.example.org/v1", model="big-9",
            sealed_key=security.encrypt("sk-secret"), tried_at=utcnow(),
        )  # fmt: skip
        session.add(row)
        session.flush()
        ref = f"external:{row.id}"
    browser = visitors.browser_of(app, ana)
    page = browser.get(f"/projects/{project_id}/chat?model={ref}").text
    assert f'<option value="{ref}" selected>Big one · api.example.org</option>' in page
    assert "What you write also goes to Big one · api.example.org." in page
    listed = browser.get(f"/projects/{project_id}/external-models").text
    assert "https://api.example.org/v1" in listed
    assert "sk-secret" not in listed
    assert row.sealed_key not in listed

    stranger = visitors.make_person("Ben", "owner")
    other = visitors.make_project(stranger.workspace_id)
    theirs = visitors.browser_of(app, stranger)
    assert "Big one" not in theirs.get(f"/projects/{other}/chat?model={ref}").text
    question = {"message": "Hi", "model": ref, "temperature": "0", "max_tokens": "8"}
    assert theirs.post(f"/projects/{other}/chat", data=question).status_code == 404
    assert theirs.post(f"/projects/{other}/external-models/{row.id}/remove").status_code == 404


@pytest.mark.parametrize(
    "url", ["example.org", "ftp://example.org", "https://", "http://☃.com/v1", "https://exämple..org/v1", "http://a:99999/v1",
            "http://[::1/v1", "https://example.org/\x01", "https://example.org/v1?key=1"],
)  # fmt: skip
def test_an_address_that_nobody_can_ask_is_refused_beside_its_field(url: str) -> None:
    form, errors = checked(ExternalForm, {"url": url, "model": "big-9"})
    assert form is None
    assert errors == {"url": "Write a whole address, such as https://api.example.org/v1."}


def test_an_address_may_end_where_the_question_begins_and_holds_no_password() -> None:
    form, _ = checked(ExternalForm, {"url": "https://api.example.org:8443/v1/chat/completions", "model": "big-9"})
    assert form is not None
    assert form.url == "https://api.example.org:8443/v1"
    assert "password" in checked(ExternalForm, {"url": "https://me:secret@example.org/v1", "model": "m"})[1]["url"]
