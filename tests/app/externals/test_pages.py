"""External models on pages: who sees them, where they stand in the chat, and that nothing of their key is shown."""

from fastapi import FastAPI

from app.core import security
from app.core.db import transaction, utcnow
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
