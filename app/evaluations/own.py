"""Test cases of a project's own: questions that people chose, each with the answer that they want."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.conversation import Message
from app.core.errors import Conflict, NotFound
from app.evaluations.cases import Case
from app.evaluations.models import TestCase
from app.projects import service as projects

MOST_CASES = 200
LONGEST = 20_000
WRITES = "annotator"


def add(
    session: Session, actor: Actor, project_id: str, *, messages: Sequence[Message], ideal: str, source_id: str
) -> TestCase:
    """Keep a question as a test case; one from the same answer is found, not made twice.

    Raises Conflict when the project has as many as an evaluation asks.
    """
    projects.get(session, actor, project_id, need=WRITES)
    known = select(TestCase).where(TestCase.project_id == project_id, TestCase.source_id == source_id)
    if (found := session.scalar(known)) is not None:
        return found
    count = session.scalar(select(func.count()).select_from(TestCase).where(TestCase.project_id == project_id)) or 0
    if count >= MOST_CASES:
        raise Conflict(f"A project has at most {MOST_CASES} tests of its own. Delete one on the evaluate page first.")
    said = [{"role": message.role, "content": message.content} for message in messages]
    case = TestCase(
        project_id=project_id,
        source_id=source_id,
        messages=said,
        ideal=ideal.strip()[:LONGEST],
        created_by=actor.user_id,
    )
    session.add(case)
    session.flush()
    return case


def listing(session: Session, actor: Actor, project_id: str) -> Sequence[TestCase]:
    """The project's own test cases, newest first."""
    projects.get(session, actor, project_id)
    query = select(TestCase).where(TestCase.project_id == project_id)
    return session.scalars(query.order_by(TestCase.created_at.desc(), TestCase.id)).all()


def get(session: Session, actor: Actor, case_id: str) -> TestCase:
    """One case, for somebody who may change it."""
    case = session.get(TestCase, case_id)
    if case is None:
        raise NotFound
    projects.get(session, actor, case.project_id, need=WRITES)
    return case


def write(session: Session, actor: Actor, case_id: str, *, ideal: str) -> TestCase:
    """Another ideal answer; empty: the case is not asked until there is one."""
    case = get(session, actor, case_id)
    case.ideal = ideal.strip().replace("\r\n", "\n")
    return case


def delete(session: Session, actor: Actor, case_id: str) -> TestCase:
    """Delete a case; what models answered to it in earlier evaluations stays there."""
    case = get(session, actor, case_id)
    session.delete(case)
    return case


def frozen(session: Session, project_id: str) -> list[dict[str, Any]]:
    """What an evaluation that starts now asks beside the test rows: cases with an ideal answer, oldest first."""
    query = select(TestCase).where(TestCase.project_id == project_id, TestCase.ideal != "")
    rows = session.scalars(query.order_by(TestCase.created_at, TestCase.id))
    return [{"messages": row.messages, "ideal": row.ideal} for row in rows]


def cases(stored: Sequence[dict[str, Any]]) -> list[Case]:
    """What `frozen` kept, numbered below zero so that no row of a version has the same number."""
    found = []
    for place, one in enumerate(stored):
        messages = [Message.model_validate(message) for message in one["messages"]]
        found.append(Case(-1 - place, messages, one["ideal"]))
    return found
