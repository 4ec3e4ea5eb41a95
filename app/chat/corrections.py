"""Better answers that people wrote under badly rated ones, and how they become rows for the next version."""

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, aliased

from app.accounts.service import Actor
from app.chat import service
from app.chat.models import Chat, ChatMessage, Feedback
from app.core.errors import Conflict
from app.datasets import service as datasets
from app.datasets.bringing import typed
from app.datasets.models import SourceFile
from app.projects import service as projects

ORIGIN = "corrections"
LONGEST = 20_000


def write(session: Session, actor: Actor, message_id: str, *, text: str) -> Chat:
    """Keep what the answer should have said; empty takes it back. Raises Conflict for an answer nobody rated as bad."""
    chat, message = service.get_message(session, actor, message_id, need=service.ASKS)
    bad = (Feedback.message_id == message.id) & (Feedback.thumb < 0)
    if session.scalar(select(func.count()).select_from(Feedback).where(bad)) == 0:
        raise Conflict("Rate this answer as bad first, then write the better one.")
    # One better answer an answer, however many people found it bad.
    session.execute(update(Feedback).where(bad).values(correction=text.strip().replace("\r\n", "\n")))
    return chat


def pairs(session: Session, actor: Actor, project_id: str) -> list[tuple[str, str]]:
    """(question, better answer) of every corrected answer of the project, oldest first."""
    projects.get(session, actor, project_id)
    asked = aliased(ChatMessage)
    query = (
        select(asked.content, func.max(Feedback.correction))
        .select_from(ChatMessage)
        .join(asked, asked.id == ChatMessage.parent_id)
        .join(Feedback, Feedback.message_id == ChatMessage.id)
        .join(Chat, Chat.id == ChatMessage.chat_id)
        .where(Chat.project_id == project_id, Chat.deleted_at.is_(None))
        .where(Feedback.thumb < 0, Feedback.correction != "", asked.content != "")
        .group_by(ChatMessage.id, asked.content, ChatMessage.created_at)
        .order_by(ChatMessage.created_at, ChatMessage.id)
    )
    return [(question, answer) for question, answer in session.execute(query)]


def bring(session: Session, actor: Actor, project_id: str) -> tuple[SourceFile, int]:
    """All corrections become one source file; the one brought before is left out. Returns it and its number of rows.

    Raises Conflict while none is written.
    """
    projects.get(session, actor, project_id, need="editor")
    rows = pairs(session, actor, project_id)
    if not rows:
        raise Conflict("No better answer is written yet. Write one under an answer that was rated as bad.")
    file = typed.add(session, actor, project_id=project_id, pairs=rows, name="Corrections", origin=ORIGIN)
    for other in datasets.list_files(session, actor, project_id):
        if other.origin == ORIGIN and other.id != file.id:
            datasets.delete_file(session, actor, other.id)
    return file, len(rows)
