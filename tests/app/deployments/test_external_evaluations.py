"""An external model beside an own one in an evaluation: the other server is a real one, our own API with its keys."""

from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.accounts.models import AuditEntry
from app.core import security, storage
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.datasets.models import DatasetVersion
from app.evaluations import running
from app.evaluations.models import Evaluation
from app.externals.models import ExternalModel
from app.runs.models import Model, Run
from tests import serving, visitors
from tests.app.deployments.conftest import Stack
from tests.app.evaluations.test_running import work, write_rows

ROWS = 4


@dataclass(frozen=True)
class Place:
    """Ana's browser, and the ids of her project, its model and the external one."""

    browser: TestClient
    project: str
    model: str
    external: str

    def start(self, *, agreed: bool, **more: str) -> Any:
        """Post the form as the page has it; what was agreed to is in the hidden field of the page that asks."""
        form = {"model_id": self.model, "external_id": self.external, "row_limit": str(ROWS)}
        if agreed:
            form["agreed"] = f"{self.model}/{self.external}/{ROWS}"
        return self.browser.post(f"/projects/{self.project}/evaluations", data=form | more)


@pytest.fixture
def ana(app: FastAPI, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An owner whose project has a trained model with the weights of the other server's, and rows kept for testing."""
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(stack.home / "sockets" / "model.sock"))
    get_settings.cache_clear()
    person = visitors.make_person("Ana", "owner")
    browser = visitors.browser_of(app, person)
    project_id = visitors.make_project(person.workspace_id)
    model_id = serving.a_trained_model(person.workspace_id, project_id, stack.folder).removeprefix("model:")
    with transaction() as session:
        version = DatasetVersion(project_id=project_id, number=1, state="succeeded", test_rows=12)
        external = ExternalModel(
            workspace_id=person.workspace_id, name="The other one", url=f"{stack.url}/v1", model=stack.model,
            sealed_key=security.encrypt(stack.key), tried_at=utcnow(),
        )  # fmt: skip
        session.add_all([version, external])
        session.flush()
        storage.version_dir(version.id).mkdir(parents=True)
        write_rows(version.id)
        session.get_one(Run, session.get_one(Model, model_id).run_id).version_id = version.id
    return Place(browser, project_id, model_id, external.id)


def test_it_answers_the_same_rows_after_it_was_said_what_leaves_the_machine(ana: Place, stack: Stack) -> None:
    assert "The other one · 127.0.0.1" in ana.browser.get(f"/projects/{ana.project}/evaluate").text
    asked_first = ana.start(agreed=False)
    assert asked_first.status_code == 422
    assert f"At most {ROWS} questions go to The other one at 127.0.0.1" in asked_first.text
    assert "The system prompt of your model goes with each." in asked_first.text
    assert f'name="agreed" value="{ana.model}/{ana.external}/{ROWS}"' in asked_first.text
    more_rows = ana.start(agreed=True, row_limit="9")
    assert more_rows.status_code == 422, "what was agreed to was fewer rows"
    with reading() as session:
        assert session.scalars(select(Evaluation)).all() == []
        assert not session.scalars(select(AuditEntry).where(AuditEntry.action == "evaluation.send")).all()

    begun = ana.start(agreed=True)
    assert begun.status_code == 303, begun.text
    evaluation = begun.headers["location"].rsplit("/", 1)[1]
    work(evaluation)
    with reading() as session:
        row = session.get_one(Evaluation, evaluation)
        results = running.recorded(session, evaluation)
        sent = session.scalars(select(AuditEntry).where(AuditEntry.action == "evaluation.send")).one()
    assert row.state == "succeeded", row.error
    assert sent.details["questions"] == ROWS
    # The same weights and the same prompt there as here: the same words, and so the same scores.
    assert [one.external_answer for one in results] == [one.tuned_answer for one in results]
    assert any(one.external_answer for one in results)
    told, table = row.summary["external"], row.summary["table"]
    assert (told["n"], told["failed"]) == (ROWS, 0)
    assert told["prompt_tokens"] > told["completion_tokens"] > 0
    assert table["exact"]["external"] == table["exact"]["tuned"]
    assert "external" not in table["loss"], "its server does not tell how probable the ideal answer is"
    assert told["difference"]["value"] == 0.0
    assert not told["difference"]["is_clear"]
    page = ana.browser.get(f"/evaluations/{evaluation}").text
    assert "against its base and The other one" in page
    assert "Your model minus The other one" in page
    assert stack.key not in page + str(row.plan)


def test_what_fails_there_is_counted_and_leaves_the_own_scores_alone(ana: Place, stack: Stack) -> None:
    with transaction() as session:
        session.get_one(ExternalModel, ana.external).sealed_key = security.encrypt("sk-wrong")
    evaluation = ana.start(agreed=True).headers["location"].rsplit("/", 1)[1]
    work(evaluation)
    with reading() as session:
        row = session.get_one(Evaluation, evaluation)
        results = running.recorded(session, evaluation)
    assert row.state == "succeeded", row.error
    assert (row.summary["n"], row.summary["errors"]) == (ROWS, 0)
    assert all("did not accept the key (401)" in one.external_error and not one.error for one in results)
    assert (row.summary["external"]["n"], row.summary["external"]["failed"]) == (0, ROWS)
    assert row.summary["external"]["difference"] is None
    assert set(row.summary["table"]["exact"]) == {"tuned", "nearest", "majority"}
    assert f"{ROWS} questions failed" in ana.browser.get(f"/evaluations/{evaluation}?rows=all").text


def test_others_external_models_and_models_of_plain_text_are_refused(ana: Place, app: FastAPI) -> None:
    stranger = visitors.make_person("Ben", "owner")
    with transaction() as session:
        theirs = ExternalModel(
            workspace_id=stranger.workspace_id, name="Theirs", url="http://127.0.0.1:9/v1", model="m", tried_at=utcnow()
        )
        session.add(theirs)
        session.flush()
    assert ana.start(agreed=False, external_id=theirs.id).status_code == 404
    assert ana.start(agreed=True, external_id=theirs.id, row_limit=str(ROWS)).status_code == 404
    with transaction() as session:
        run = session.get_one(Run, session.get_one(Model, ana.model).run_id)
        run.frozen = run.frozen | {"dataset": {"kind": "text"}}
    refused = ana.start(agreed=True)
    assert refused.status_code == 422
    assert "scored by the probability of each token" in refused.text
