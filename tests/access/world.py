"""Two workspaces with one of everything, so that each can try to reach what belongs to the other."""

from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import select

from app.accounts import members
from app.accounts.models import Invitation, Member
from app.chat.models import Chat, ChatMessage
from app.contracts.probe import RatesTried
from app.core.db import new_id, transaction, utcnow
from app.core.security import encrypt, token_sha256
from app.datasets.models import (
    DatasetVersion,
    Finding,
    RemoteSource,
    RowChange,
    SourceFile,
    Upload,
    VersionComparison,
)
from app.deployments import names
from app.deployments.models import ApiKey
from app.drafting.models import Draft, Drafting
from app.evaluations.models import CaseResult, Evaluation, TestCase
from app.exports.models import Export
from app.externals.models import ExternalModel
from app.recipes.base_facts import BaseFacts
from app.recipes.models import BaseModelEntry, Probe, SavedRecipe
from app.runs.models import Checkpoint, Model, Notice, Run
from app.searches.models import Search
from tests.visitors import Person, make_person, make_project, make_workspace

FACTS = BaseFacts(parameters=1000, layers=2, width=16, heads=2, kv_heads=2, inner=32, vocabulary=300, context_length=32)
ROLES = ("viewer", "annotator", "editor", "owner")


@dataclass
class World:
    """A workspace: its people by role, ids by the names that paths and bodies use, and its API keys."""

    people: dict[str, Person]
    ids: dict[str, str] = field(default_factory=dict)
    key: str = ""
    revoked_key: str = ""


def make_world(name: str) -> World:
    """One of everything, as it stands after a first successful run."""
    workspace_id = make_workspace(f"{name}'s workspace")
    world = World({role: make_person(f"{name}-{role}", role, workspace_id) for role in ROLES})
    project_id = make_project(workspace_id, f"{name}'s project")
    owner = world.people["owner"]
    guest_id = make_person(f"{name}-guest", "viewer", workspace_id).user_id
    with transaction() as session:
        token = members.invite(session, owner.actor, workspace_id=workspace_id, role="viewer")
        invitation = session.scalars(select(Invitation).where(Invitation.token_sha256 == token_sha256(token))).one()
        guest = session.scalars(select(Member).where(Member.user_id == guest_id)).one()
        file = SourceFile(project_id=project_id, filename="questions.csv", size_bytes=10, state="succeeded")
        upload = Upload(
            project_id=project_id, user_id=world.people["editor"].user_id, filename="more.csv", size_bytes=9
        )
        version = DatasetVersion(project_id=project_id, number=1, state="succeeded", train_rows=10)
        base = BaseModelEntry(
            workspace_id=workspace_id,
            source="folder",
            ref="/models/tiny",
            name="tiny",
            state="succeeded",
            details={"facts": FACTS.model_dump()},
        )
        probe = Probe(
            project_id=project_id,
            kind="rates",
            key="0" * 64,
            order={"recipe": {"learning_rate": 1e-3}},
            state="succeeded",
            result=RatesTried(start_loss=2.0, steps=6, tried=[], proposed=1e-3).model_dump(),
        )
        saved = SavedRecipe(
            workspace_id=workspace_id,
            project_id=project_id,
            name="Short",
            recipe={"method": "lora", "base_source": "starter"},
            base={"source": "starter"},
            base_name="Starter model",
        )
        session.add_all([file, upload, version, base, probe, saved])
        session.flush()
        earlier = DatasetVersion(project_id=project_id, number=2, state="succeeded", train_rows=10)
        session.add(earlier)
        session.flush()
        comparison = VersionComparison(project_id=project_id, old_id=earlier.id, new_id=version.id)
        drafting = Drafting(
            project_id=project_id, workspace_id=workspace_id, file_id=file.id, target="endpoint", state="failed"
        )
        external = ExternalModel(
            workspace_id=workspace_id, name="Big one", url="http://127.0.0.1:9/v1", model="m", tried_at=utcnow()
        )
        session.add_all([comparison, drafting, external])
        session.flush()
        draft = Draft(drafting_id=drafting.id, chunk=0, passage="Soup is hot.", question="Is it?", answer="Yes.")
        session.add(draft)
        change = RowChange(id=7_100_000_000 + ord(name[0]), project_id=project_id, kind="delete", key=1)
        finding = Finding(file_id=file.id, code="empty", sentence="Row 3 is empty.")
        run = Run(
            project_id=project_id,
            workspace_id=workspace_id,
            number=1,
            name="Run 1",
            version_id=version.id,
            base_model_id=base.id,
            recipe={"method": "lora", "base_source": "starter"},
            state="succeeded",
            step=120,
            total_steps=120,
            started_at=utcnow() - timedelta(minutes=3),
            ended_at=utcnow(),
        )
        remote = RemoteSource(project_id=project_id, kind="web", address="https://example.org/soup.csv", state="failed")
        session.add_all([finding, run, change, remote])
        session.flush()
        checkpoint = Checkpoint(
            run_id=run.id,
            attempt_id=new_id(),
            fence=1,
            step=120,
            dir="checkpoints/step-00000120",
            manifest_sha256="0" * 64,
            size_bytes=10,
            is_best=True,
        )
        model = Model(
            project_id=project_id,
            run_id=run.id,
            name="Run 1",
            kind="lora",
            files={"base_dir": "/models/tiny", "overlays": []},
            step=120,
        )
        search = Search(
            project_id=project_id,
            workspace_id=workspace_id,
            number=1,
            way="grid",
            space=[{"name": "learning_rate", "scale": "log", "low": 1e-4, "high": 1e-2, "choices": []}],
            budget_runs=4,
            recipe={"method": "lora", "base_source": "starter"},
        )
        notice = Notice(run_id=run.id, channel="webhook", target=encrypt("https://example.org/"), shown="example.org")
        session.add_all([checkpoint, model, search, notice])
        session.flush()
        evaluation = Evaluation(project_id=project_id, model_id=model.id, version_id=version.id, state="succeeded")
        chat = Chat(project_id=project_id, title="About soup", model_refs=[f"model:{model.id}"])
        session.add_all([evaluation, chat])
        session.flush()
        question = ChatMessage(chat_id=chat.id, position=0, role="user", content="How long does soup cook?")
        session.add(question)
        session.flush()
        answer = ChatMessage(
            chat_id=chat.id,
            position=1,
            role="assistant",
            content="An hour.",
            parent_id=question.id,
            model_ref=f"model:{model.id}",
        )
        case = CaseResult(evaluation_id=evaluation.id, position=0, rid=1, prompt="?", ideal="!")
        export = Export(
            project_id=project_id, run_id=run.id, model_ref=f"model:{model.id}", model_name="Run 1", kind="merged",
            state="failed",
        )  # fmt: skip
        test = TestCase(project_id=project_id, messages=[{"role": "user", "content": "?"}], ideal="!")
        session.add_all([answer, case, test, export])
        session.flush()
        world.ids = {
            "workspace_id": workspace_id,
            "project_id": project_id,
            "file_id": file.id,
            "upload_id": upload.id,
            "source_id": remote.id,
            "version_id": version.id,
            "earlier_version_id": earlier.id,
            "comparison_id": comparison.id,
            "drafting_id": drafting.id,
            "external_id": external.id,
            "draft_id": str(draft.id),
            "finding_id": str(finding.id),
            "change_id": str(change.id),
            "probe_id": probe.id,
            "saved_id": saved.id,
            "base_id": base.id,
            "entry_id": base.id,
            "run_id": run.id,
            "checkpoint_id": checkpoint.id,
            "search_id": search.id,
            "notice_id": notice.id,
            "step": "120",
            "model_id": model.id,
            "model_name": f"{name.lower()}-s-project-run-1",
            "evaluation_id": evaluation.id,
            "case_id": str(case.id),
            "test_id": test.id,
            "chat_id": chat.id,
            "message_id": answer.id,
            "export_id": export.id,
            "invitation_id": invitation.id,
            "member_id": guest.id,
        }
    return world


def add_keys(world: World) -> None:
    """A live and a revoked API key."""
    with transaction() as session:
        rows = []
        for text in (f"sk-{new_id()}_live-{new_id()}", f"sk-{new_id()}_dead-{new_id()}"):
            row = ApiKey(
                id=text[3:23],
                workspace_id=world.ids["workspace_id"],
                name="a key",
                secret_sha256=token_sha256(text),
                last_four=text[-4:],
                scopes=["read", "chat", "train"],
            )
            rows.append((text, row))
            session.add(row)
        world.key, world.revoked_key = rows[0][0], rows[1][0]
        rows[1][1].revoked_at = utcnow()
        world.ids["key_id"] = rows[0][1].id
        names.give_names(session, world.ids["workspace_id"])
