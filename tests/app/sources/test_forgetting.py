"""The source ledger, and a source that is forgotten with every version and model that came from it."""

import json

import pytest
from sqlalchemy import select

from app.accounts.models import AuditEntry
from app.chat import service as chat
from app.contracts.generation import Sampling
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading, transaction
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from app.datasets import plans, versions
from app.datasets import service as datasets
from app.datasets.combining import service as combining
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.deployments import names
from app.drafting.models import Draft, Drafting
from app.inference import targets
from app.runs import service as runs
from app.runs.models import Checkpoint, Model, Run
from app.sources import erasing, service
from app.sources.models import Forgetting
from tests.visitors import browser_of, make_person, make_project
from worker.tasks import datasets as tasks
from worker.tasks import sources as work

RECIPE = {"method": "scratch", "base_source": "scratch", "scratch": {"layers": 1, "heads": 2, "width": 16}}


@pytest.fixture
def ana(app):
    person = make_person("Ana", "owner")
    browser = browser_of(app, person)
    browser.person, browser.project = person, make_project(person.workspace_id, "Soup")
    return browser


def bring(ana, name: str) -> str:
    rows = [{"question": f"{name} question {i}?", "answer": f"{name} answer {i}"} for i in range(30)]
    with transaction() as session:
        text = "\n".join(map(json.dumps, rows))
        file = datasets.add_text(session, ana.person.actor, project_id=ana.project, text=text, name=name)
    tasks.import_file(file.id)
    return file.id


def prepare() -> None:
    with reading() as session:
        plan_id = session.scalar(select(CleaningPlan.id))
    tasks.prepare(plan_id)


def frozen(ana) -> DatasetVersion:
    prepare()
    with transaction() as session:
        version = versions.freeze(session, ana.person.actor, ana.project)
    tasks.freeze(version.id)
    return version


def a_run(ana, number: int, version_id: str | None, state: str = "succeeded", parent: str | None = None) -> str:
    """A run with files; where it succeeded with a model and a checkpoint, too. Returns the run's id."""
    with transaction() as session:
        run = Run(
            project_id=ana.project, workspace_id=ana.person.workspace_id, number=number, name=f"Run {number}",
            version_id=version_id, parent_model_id=parent, recipe=RECIPE, state=state,
            frozen={"dataset": {"kind": "chat"}},
        )  # fmt: skip
        session.add(run)
        session.flush()
        weights = storage.run_dir(run.id) / "checkpoints" / "step-00000009" / "weights"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(b"learned from a secret recipe")
        storage.publish_artefact(weights, f"models/{run.id}")
        if state == "succeeded":
            files = {"base_dir": str(weights), "overlays": []}
            session.add(Model(project_id=ana.project, run_id=run.id, name=run.name, kind="whole", files=files, step=9))
            session.add(
                Checkpoint(run_id=run.id, attempt_id="a", fence=1, step=9, dir="checkpoints/step-00000009",
                           manifest_sha256="0" * 64, size_bytes=1)
            )  # fmt: skip
    return run.id


def model_of(run_id: str) -> str:
    with reading() as session:
        return session.scalar(select(Model.id).where(Model.run_id == run_id))


def test_what_came_of_a_source_is_followed_through_versions_and_models(ana):
    secret = bring(ana, "secret")
    first = frozen(ana)
    bring(ana, "kept")
    with transaction() as session:
        datasets.delete_file(session, ana.person.actor, secret)
    clean = frozen(ana)
    with transaction() as session:
        merged = combining.combine(session, ana.person.actor, clean.id, operation="merge", others=[(first.id, 1)])
    tasks.freeze(merged.id)
    direct = a_run(ana, 1, merged.id)
    later = a_run(ana, 2, clean.id, parent=model_of(direct))
    other = a_run(ana, 3, clean.id)
    queued = a_run(ana, 4, first.id, state="queued")
    with reading() as session:
        found = {s.file.filename: s for s in service.sources(session, ana.person.actor, ana.project)}
    assert [v.number for v in found["secret"].versions] == [1, 3]
    assert [r.number for r in found["secret"].runs] == [1, 2, 4]
    assert {m.run_id for m in found["secret"].models} == {direct, later}
    assert {m.run_id for m in found["kept"].models} == {direct, later, other}

    with transaction() as session:
        of = {"project_id": ana.project, "workspace_id": ana.person.workspace_id, "target": "endpoint"}
        session.add(Drafting(id="drafted", file_id=secret, state="succeeded", **of))
        session.flush()
        session.add(Draft(drafting_id="drafted", chunk=0, passage="a passage of the secret"))
    assert ana.get(f"/versions/{first.id}").status_code == 200
    assert list(storage.browsing_dir(first.id).rglob("*")), "the table of a version has an index"
    (storage.tokens_dir(first.id) / "learn.u8").write_bytes(b"secret")

    page = ana.get(f"/sources/{secret}").text
    assert "2 versions" in page
    assert "2 models" in page
    wrong = ana.post(f"/sources/{secret}/forget", data={"name": "Secret", "because": ""})
    assert wrong.status_code == 422
    assert "Type the name exactly as it is" in wrong.text
    answer = ana.post(f"/sources/{secret}/forget", data={"name": "secret", "because": "Consent was withdrawn."})
    assert answer.headers["location"] == f"/projects/{ana.project}/sources"
    why = "The source “secret” was forgotten on .* Reason: Consent was withdrawn"

    # From this moment nothing new is made of it, and everything that is asked says why.
    with transaction() as session:
        assert session.get(Run, queued).state == "cancelled"
        for ref in (f"model:{model_of(direct)}", f"model:{model_of(later)}"):
            with pytest.raises(NotFound, match=why):
                targets.resolve(session, ana.person.actor, ana.project, ref)
            with pytest.raises(NotFound, match=why):
                chat.ask(
                    session, ana.person.actor, ana.project, content="What is in the soup?", refs=[ref],
                    sampling=Sampling(), system_prompt="",
                )  # fmt: skip
        names.give_names(session, ana.person.workspace_id)
        with pytest.raises(NotFound, match=why):
            names.target_of(session, ana.person.actor, "soup-run-1")
        assert names.target_of(session, ana.person.actor, "soup-run-3")[1].ref == f"model:{model_of(other)}"
        with pytest.raises(Invalid) as refused:
            runs.retry(session, ana.person.actor, queued, client_request_id="again")
        assert "was retired" in str(refused.value.fields)
        with pytest.raises(Conflict, match="was retired"):
            combining.combine(session, ana.person.actor, first.id, operation="sample", others=[], rows=3)
        with pytest.raises(NotFound, match=why):
            datasets.restore_file(session, ana.person.actor, secret)
        assert versions.latest(session, ana.project).id == clean.id
    assert "Its rows and the models that learned from them were deleted" in ana.get(f"/versions/{merged.id}").text

    with reading() as session:
        row = session.scalar(select(Forgetting))
    work.forget(row.id)
    with reading() as session:
        row = session.get(Forgetting, row.id)
        assert (row.state, row.error) == ("succeeded", "")
        entry = session.scalar(select(AuditEntry).where(AuditEntry.action == "source.forgotten"))
        assert (entry.subject, entry.details["models"], entry.details["versions"]) == ("secret", 2, 2)
        assert plans.get(session, ana.person.actor, ana.project).state == "queued"
        assert session.scalar(select(Draft)) is None, "drafts quote the source"
    assert erasing.is_erased(row)
    assert not (get_settings().home_dir / "browsing" / first.id).exists()
    assert not (get_settings().home_dir / "tokens" / first.id).exists()
    left = [p for p in get_settings().home_dir.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    database = [p for p in left if p.name.startswith("gpt-builder.db")]
    assert not [p for p in database if b"a passage of the secret" in p.read_bytes()], "deleted rows are overwritten"
    left = [p for p in left if p not in database]
    assert {p.relative_to(get_settings().home_dir).parts[1] for p in left} <= {other, "models"}, left
    assert storage.version_dir(clean.id).exists()
    prepare()
    page = ana.get(f"/projects/{ana.project}/sources").text
    assert "every file was deleted" in page
    assert "Consent was withdrawn." in page


def test_only_owners_forget_and_editors_describe(app, ana):
    file_id = bring(ana, "letters")
    editor = make_person("Eda", "editor", ana.person.workspace_id)
    with transaction() as session, pytest.raises(Forbidden):
        service.forget(session, editor.actor, file_id, name="letters", because="")
    browser = browser_of(app, editor)
    form = {"licence": "our own", "consent": "Asked in May.", "origin_url": "", "obtained_on": "2026-05-04"}
    assert browser.post(f"/sources/{file_id}", data=form).status_code == 303
    page = ana.get(f"/projects/{ana.project}/sources").text
    assert "Asked in May." in page
    assert "2026-05-04" in page
    assert browser.post(f"/sources/{file_id}", data={**form, "obtained_on": "soon"}).status_code == 422
    with transaction() as session:
        session.get(SourceFile, file_id).state = "running"
    with transaction() as session, pytest.raises(Conflict, match="being read"):
        service.forget(session, ana.person.actor, file_id, name="letters", because="")
