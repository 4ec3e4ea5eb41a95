"""An answer of a chat becomes a test case: what chat and evaluations have in common lies above both."""

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.chat import ratings
from app.chat import service as chats
from app.chat.models import Chat
from app.contracts.conversation import Message
from app.core.errors import Conflict
from app.evaluations import own
from app.inference import targets


def keep(session: Session, actor: Actor, message_id: str) -> tuple[Chat, bool]:
    """Keep an answer's question, and what was said before it, as a test; and whether its ideal answer is known.

    An answer that nobody found bad is the ideal one; of a bad one it is what people wrote instead. Raises Conflict for
    an answer that is not finished, or of a model of plain text, which is asked no questions.
    """
    chat, answer = chats.get_message(session, actor, message_id, need=chats.ASKS)
    if answer.role != "assistant" or answer.state not in ("done", "stopped"):
        raise Conflict("Only a finished answer can become a test.")
    if not any(answer in turn.answers for turn in chats.turns(session, chat)):
        raise Conflict("Another version of this answer is shown now. Choose this one first.")
    target = targets.resolve(session, actor, chat.project_id, answer.model_ref)
    if not target.is_chat:
        raise Conflict("This model goes on with plain text and is tested on texts only.")
    messages: list[Message] = chats.history(session, chat, answer, target)
    ideal = ratings.ideal_of(session, answer)
    own.add(session, actor, chat.project_id, messages=messages, ideal=ideal, source_id=answer.id)
    return chat, bool(ideal.strip())
