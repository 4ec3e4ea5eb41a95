"""What people think of answers: a thumb, tags and a note, one rating a person."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.chat import service
from app.chat.models import TAGS_BY_THUMB, Chat, ChatMessage, Feedback
from app.core.errors import Invalid


def rate(
    session: Session,
    actor: Actor,
    message_id: str,
    *,
    thumb: int,
    note: str | None = None,
    tags: Sequence[str] | None = None,
) -> tuple[Chat, ChatMessage]:
    """Store what this person thinks of an answer; once a person, the last word counts. None leaves what was said.

    Another thumb takes the tags away that do not go with it.
    """
    chat, message = service.get_message(session, actor, message_id, need=service.ASKS)
    if message.role != "assistant" or actor.user_id is None:
        raise Invalid("Only answers can be rated, by a person.")
    rating = session.get(Feedback, (message.id, actor.user_id))
    if rating is None:
        rating = Feedback(message_id=message.id, user_id=actor.user_id, note="", tags=[])
        session.add(rating)
    rating.thumb = thumb
    rating.note = rating.note if note is None else note
    said = rating.tags if tags is None else tags
    rating.tags = [tag for tag in TAGS_BY_THUMB.get(thumb, {}) if tag in said]
    session.flush()
    return chat, message


def by_message(session: Session, actor: Actor, chat: Chat) -> dict[str, Feedback]:
    """This person's ratings in a chat, by message."""
    query = select(Feedback).join(ChatMessage, ChatMessage.id == Feedback.message_id)
    rows = session.scalars(query.where(ChatMessage.chat_id == chat.id, Feedback.user_id == actor.user_id))
    return {row.message_id: row for row in rows}


def ideal_of(session: Session, answer: ChatMessage) -> str:
    """What should have been said: the answer itself, or what people wrote instead of a bad one (perhaps nothing)."""
    query = select(Feedback.correction).where(Feedback.message_id == answer.id, Feedback.thumb < 0)
    corrections = session.scalars(query.order_by(Feedback.correction.desc())).all()
    return corrections[0] if corrections else answer.content
