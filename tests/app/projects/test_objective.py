"""Projects and their objective: made from templates, renamed, deleted with a way back, seen by their people only."""

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.models import AuditEntry, Member, User, Workspace
from app.accounts.service import Actor
from app.core.db import utcnow
from app.core.errors import Forbidden, Gone, Invalid, NotFound
from app.projects import gallery, service
from app.projects.models import Objective
from app.projects.service import ObjectiveText


def somebody(session: Session, role: str = "owner") -> Actor:
    user, workspace = User(email=f"{role}@example.org", name="Ana", password_hash="-"), Workspace(name="Kitchen")
    session.add_all([user, workspace])
    session.flush()
    session.add(Member(workspace_id=workspace.id, user_id=user.id, role=role))
    return Actor(user.id, user.email, user.name, {workspace.id: role})


def test_every_application_has_a_template_that_works_as_it_stands() -> None:
    wanted = {
        *("support", "content", "news", "legal", "medical", "assistant", "tutor", "extraction", "classification"),
        "free",
    }
    assert set(gallery.TEMPLATES) == wanted
    for template in gallery.TEMPLATES.values():
        assert template.bring, template.key
        if template.key != "free":
            assert len(template.task) > 80
            assert template.must_never
            assert len(template.samples) >= 2
            assert all(sample["question"] and sample["answer"] for sample in template.samples)
    assert gallery.TEMPLATES["medical"].warning
    assert gallery.TEMPLATES["legal"].warning


def test_a_new_project_has_the_objective_of_its_template(session: Session) -> None:
    project = service.create(session, somebody(session), name="Inbox", template_key="classification")
    objective = session.get(Objective, project.id)
    assert objective is not None
    assert "exactly one of our categories" in objective.task
    assert objective.system_prompt.startswith(objective.task)
    assert "Never:\n- Answer with more than one category" in objective.system_prompt
    assert session.scalars(select(AuditEntry.action)).all() == ["project.create"]


def test_the_template_is_not_changed_by_the_project(session: Session) -> None:
    project = service.create(session, somebody(session), name="Inbox", template_key="support")
    objective = session.get(Objective, project.id)
    assert objective is not None
    objective.samples[0]["answer"] = "mine"
    objective.must_never.append("mine")
    assert "mine" not in str(gallery.TEMPLATES["support"])


def test_a_viewer_makes_and_changes_nothing(session: Session) -> None:
    owner = somebody(session)
    project = service.create(session, owner, name="Inbox", template_key="free")
    viewer = Actor("v", "", "", {project.workspace_id: "viewer"})
    assert service.get(session, viewer, project.id) is project
    with pytest.raises(Forbidden):
        service.create(session, viewer, name="Other", template_key="free")
    with pytest.raises(Forbidden):
        service.rename(session, viewer, project.id, name="Other")
    with pytest.raises(Forbidden):
        service.save_objective(session, viewer, project.id, text=ObjectiveText(task="Other"))
    editor = Actor("e", "", "", {project.workspace_id: "editor"})
    with pytest.raises(Forbidden):
        service.delete(session, editor, project.id)
    assert project.name == "Inbox"


def test_a_stranger_sees_nothing(session: Session) -> None:
    project = service.create(session, somebody(session), name="Inbox", template_key="free")
    stranger = Actor("s", "", "", {"another": "owner"})
    assert service.visible(session, stranger) == []
    for refused in (service.get, service.objective, service.delete, service.restore):
        with pytest.raises(NotFound):
            refused(session, stranger, project.id)


def test_a_deleted_project_is_gone_and_comes_back_for_thirty_days(session: Session) -> None:
    owner = somebody(session)
    project = service.create(session, owner, name="Inbox", template_key="free")
    service.delete(session, owner, project.id)
    assert service.visible(session, owner) == []
    with pytest.raises(NotFound):
        service.get(session, owner, project.id)
    service.restore(session, owner, project.id)
    assert [found.id for found in service.visible(session, owner)] == [project.id]
    service.delete(session, owner, project.id)
    project.deleted_at = utcnow() - timedelta(days=31)
    with pytest.raises(Gone):
        service.restore(session, owner, project.id)


def test_search_takes_signs_as_they_are(session: Session) -> None:
    owner = somebody(session)
    for name in ("100 % wool", "Wool", "Soup"):
        service.create(session, owner, name=name, template_key="free")
    assert [p.name for p in service.visible(session, owner, search="%")] == ["100 % wool"]
    assert {p.name for p in service.visible(session, owner, search="wool")} == {"100 % wool", "Wool"}


def test_an_answer_without_a_question_is_refused(session: Session) -> None:
    owner = somebody(session)
    project = service.create(session, owner, name="Inbox", template_key="free")
    text = ObjectiveText(task="Sort.", samples=[{"question": "", "answer": "billing"}])
    with pytest.raises(Invalid) as refused:
        service.save_objective(session, owner, project.id, text=text)
    assert set(refused.value.fields) == {"samples"}


def test_the_instruction_leaves_out_what_is_empty() -> None:
    assert service.instruction(ObjectiveText(task=" Sort. ")) == "Sort."
    assert service.instruction(ObjectiveText()) == ""
    full = service.instruction(ObjectiveText("Sort.", "An inbox.", "Dry.", ["Guess."]))
    assert full == "Sort.\n\nYou write for: An inbox.\n\nTone: Dry.\n\nNever:\n- Guess."
