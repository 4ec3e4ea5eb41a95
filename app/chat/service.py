"""Saved conversations: asking, asking again, stopping. The answers themselves are made in answering.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from app.accounts.service import Actor
from app.chat import asked
from app.chat.asked import Asked
from app.chat.models import Chat, ChatMessage
from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.core import lives
from app.core.db import utcnow
from app.core.errors import Conflict, Invalid, NotFound
from app.core.markdown import plain
from app.inference import targets
from app.inference.targets import Target
from app.projects import service as projects

ABANDONED_S = 60
INTERRUPTED = "The answer was interrupted. Choose “Try again”."
ASKS = "annotator"
MOST_MODELS = 4
KEPT_SETTINGS = {"temperature", "max_tokens", "top_p", "repetition_penalty", "seed", "stop", "top_logprobs"}


def get(session: Session, actor: Actor, chat_id: str, *, need: str = "viewer") -> Chat:
    """A chat, for somebody who may see its project."""
    chat = session.get(Chat, chat_id)
    if chat is None or chat.deleted_at is not None:
        raise NotFound
    projects.get(session, actor, chat.project_id, need=need)
    return chat


def get_message(session: Session, actor: Actor, message_id: str, *, need: str = "viewer") -> tuple[Chat, ChatMessage]:
    """One message and its chat."""
    message = session.get(ChatMessage, message_id)
    if message is None:
        raise NotFound
    return get(session, actor, message.chat_id, need=need), _told(message)


def listing(session: Session, actor: Actor, project_id: str, *, search: str = "", limit: int = 50) -> Sequence[Chat]:
    """The project's chats, newest first; `search` looks into titles and messages."""
    projects.get(session, actor, project_id)
    query = select(Chat).where(Chat.project_id == project_id, Chat.deleted_at.is_(None))
    if search:
        pattern = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        said = select(ChatMessage.chat_id).where(ChatMessage.content.ilike(pattern, escape="\\"))
        query = query.where(Chat.title.ilike(pattern, escape="\\") | Chat.id.in_(said))
    return session.scalars(query.order_by(Chat.updated_at.desc(), Chat.id).limit(limit)).all()


def ask(
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    content: str,
    refs: Sequence[str],
    sampling: Sampling,
    system_prompt: str,
    chat_id: str | None = None,
    is_blind: bool = False,
) -> tuple[Chat, list[ChatMessage]]:
    """Add a question, and an answer to be made for each model. Returns the chat and those answers.

    Raises Invalid when no model is named, NotFound for a model or chat that is not the actor's, Conflict while an
    answer of this chat is still being made.
    """
    project = projects.get(session, actor, project_id, need=ASKS)
    if chat_id:
        chat = get(session, actor, chat_id, need=ASKS)
        if chat.project_id != project.id:
            raise NotFound
        settle_abandoned(session, chat)
        if is_answering(session, chat):
            raise Conflict("An answer is still being written. Wait for it, or stop it first.")
    else:
        chat = Chat(project_id=project.id, title=plain(content), created_by=actor.user_id)
        session.add(chat)
    named = [ref for ref in dict.fromkeys(refs) if ref][:MOST_MODELS]
    if not named:
        raise Invalid(fields={"model": "Choose the model to ask."})
    for ref in named:
        asked.resolve(session, actor, project.id, ref)
    chat.model_refs, chat.system_prompt = named, system_prompt
    chat.sampling = sampling.model_dump(include=KEPT_SETTINGS)
    chat.is_blind = is_blind and len(named) > 1
    chat.updated_at = utcnow()
    session.flush()
    shown = turns(session, chat)
    last = shown[-1] if shown else None
    parent_id = (last.answers[0].id if last.answers else last.question.id) if last else None
    question = ChatMessage(chat_id=chat.id, parent_id=parent_id, position=2 * len(shown), role="user", content=content)
    session.add(question)
    session.flush()
    return chat, [_pending(session, chat, question, ref) for ref in named]


def set_up(session: Session, actor: Actor, chat_id: str, *, sampling: Sampling, system_prompt: str) -> Chat:
    """Keep other settings: the next answer is made with them, a further version of an earlier one, too."""
    chat = get(session, actor, chat_id, need=ASKS)
    chat.sampling, chat.system_prompt = sampling.model_dump(include=KEPT_SETTINGS), system_prompt
    return chat


def edit(session: Session, actor: Actor, message_id: str, *, content: str) -> tuple[Chat, list[ChatMessage]]:
    """Ask an earlier question in other words. The earlier version stays, with all that followed it.

    Raises Invalid for an answer, Conflict while an answer of this chat is being made.
    """
    chat, earlier = get_message(session, actor, message_id, need=ASKS)
    if earlier.role != "user":
        raise Invalid("Only your own messages can be written again.")
    settle_abandoned(session, chat)
    if is_answering(session, chat):
        raise Conflict("An answer is still being written. Wait for it, or stop it first.")
    for ref in chat.model_refs:
        asked.resolve(session, actor, chat.project_id, ref)
    question = ChatMessage(
        chat_id=chat.id, parent_id=earlier.parent_id, position=earlier.position, role="user", content=content
    )
    session.add(question)
    session.flush()
    _choose(session, question)
    chat.updated_at = utcnow()
    return chat, [_pending(session, chat, question, ref) for ref in chat.model_refs]


def choose(session: Session, actor: Actor, message_id: str) -> Chat:
    """Show this version of a question or an answer, and what followed it."""
    chat, message = get_message(session, actor, message_id, need=ASKS)
    _choose(session, message)
    return chat


def _choose(session: Session, message: ChatMessage) -> None:
    """Of all versions the one that is shown."""
    same = [ChatMessage.chat_id == message.chat_id, ChatMessage.role == message.role]
    parent = ChatMessage.parent_id
    same.append(parent.is_(None) if message.parent_id is None else parent == message.parent_id)
    if message.role == "assistant":
        same.append(ChatMessage.model_ref == message.model_ref)
    session.execute(update(ChatMessage).where(*same).values(is_active=ChatMessage.id == message.id))
    session.refresh(message)


def vote(session: Session, actor: Actor, message_id: str) -> Chat:
    """Say which answer is better; the question's own id says that neither is. Then the names are told."""
    chat, message = get_message(session, actor, message_id, need=ASKS)
    question = message if message.role == "user" else session.get(ChatMessage, message.parent_id)
    if question is None or len(chat.model_refs) < 2:
        raise Invalid("Only answers side by side can be compared.")
    question.vote = "tie" if message is question else message.id
    return chat


def again(session: Session, actor: Actor, message_id: str) -> tuple[Chat, ChatMessage]:
    """Make another answer to the same question; the earlier one is kept as a version, with what followed it."""
    chat, message = get_message(session, actor, message_id, need=ASKS)
    if message.role != "assistant" or not message.is_active:
        raise Invalid("Only an answer that is shown can be tried again.")
    settle_abandoned(session, chat)
    if is_answering(session, chat):
        raise Conflict("An answer is still being written. Wait for it, or stop it first.")
    asked.resolve(session, actor, chat.project_id, message.model_ref)
    question = session.get(ChatMessage, message.parent_id)
    if question is None:
        raise NotFound
    return chat, _pending(session, chat, question, message.model_ref)


def _pending(session: Session, chat: Chat, question: ChatMessage, ref: str) -> ChatMessage:
    answer = ChatMessage(
        chat_id=chat.id, parent_id=question.id, position=question.position + 1, role="assistant", model_ref=ref,
        state="streaming", maker=lives.own(),
    )  # fmt: skip
    session.add(answer)
    session.flush()
    _choose(session, answer)
    return answer


def is_answering(session: Session, chat: Chat) -> bool:
    """Whether an answer of this chat is being made."""
    query = select(ChatMessage.id).where(ChatMessage.chat_id == chat.id, ChatMessage.state == "streaming")
    return session.scalar(query.limit(1)) is not None


def _told(message: ChatMessage) -> ChatMessage:
    """The message as pages tell it: one whose maker has died is interrupted, even before that is written down.

    Pages only read, so nothing is marked as changed here.
    """
    if _is_abandoned(message):
        set_committed_value(message, "state", "failed")
        set_committed_value(message, "error", INTERRUPTED)
    return message


def _is_abandoned(message: ChatMessage) -> bool:
    """Whether nobody makes this answer any more. Of a process on another machine only its silence tells."""
    if message.state != "streaming":
        return False
    return message.saved_at < utcnow() - timedelta(seconds=ABANDONED_S) or lives.is_over(message.maker)


def settle_abandoned(session: Session, chat: Chat) -> None:
    """Answers whose maker has died are marked as interrupted; what was said so far is kept."""
    query = select(ChatMessage).where(ChatMessage.chat_id == chat.id, ChatMessage.state == "streaming")
    # As it is written down: what `_told` says of it is not.
    for message in session.scalars(query.execution_options(populate_existing=True)):
        if _is_abandoned(message):
            message.state, message.error = "failed", INTERRUPTED


def request_stop(session: Session, actor: Actor, message_id: str) -> tuple[Chat, ChatMessage]:
    """Ask the maker of an answer to stop; it keeps what was said."""
    chat, message = get_message(session, actor, message_id, need=ASKS)
    if message.state == "streaming":
        message.error = "stop"
    settle_abandoned(session, chat)
    return chat, message


@dataclass(frozen=True)
class Versions:
    """Which of how many versions is shown, and its neighbours' ids."""

    number: int
    count: int
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Turn:
    """A question and its shown answers; `versions` of those messages that have several."""

    question: ChatMessage
    answers: list[ChatMessage]
    versions: dict[str, Versions]
    is_masked: bool = False

    def letter(self, message: ChatMessage) -> str:
        """The answer's letter in a blind comparison."""
        return "ABCD"[[answer.id for answer in self.answers].index(message.id)]


def turns(session: Session, chat: Chat) -> list[Turn]:
    """The conversation as it is shown, in order: from version to chosen version."""
    query = select(ChatMessage).where(ChatMessage.chat_id == chat.id)
    rows = session.scalars(query.order_by(ChatMessage.created_at, ChatMessage.id)).all()
    questions: dict[str | None, list[ChatMessage]] = {}
    answers: dict[str | None, list[ChatMessage]] = {}
    for row in rows:
        (answers if row.role == "assistant" else questions).setdefault(row.parent_id, []).append(_told(row))
    order = {ref: place for place, ref in enumerate(chat.model_refs)}
    shown: list[Turn] = []
    parents: list[str | None] = [None]
    while asked := next((q for parent in parents for q in questions.get(parent, []) if q.is_active), None):
        every = answers.get(asked.id, [])
        said = [answer for answer in every if answer.is_active]
        # Blind, the order must not tell either: ids are drawn at random.
        said.sort(key=lambda m: m.id if chat.is_blind else f"{order.get(m.model_ref, 9)}")
        versions = _versions(questions.get(asked.parent_id, []), asked)
        for answer in said:
            versions |= _versions([one for one in every if one.model_ref == answer.model_ref], answer)
        shown.append(Turn(asked, said, versions, chat.is_blind and len(said) > 1 and not asked.vote))
        parents = [*(answer.id for answer in said), asked.id]
    return shown


def turn_of(session: Session, chat: Chat, message: ChatMessage) -> Turn:
    """The turn that an answer stands in; one of its own where another version is shown just now."""
    found = next((turn for turn in turns(session, chat) if message in turn.answers), None)
    return found or Turn(message, [message], {})


def _versions(same: list[ChatMessage], message: ChatMessage) -> dict[str, Versions]:
    if len(same) < 2:
        return {}
    ids = [one.id for one in same]
    place = ids.index(message.id)
    before, after = ids[place - 1] if place else None, ids[place + 1] if place + 1 < len(ids) else None
    return {message.id: Versions(place + 1, len(ids), before, after)}


def history(session: Session, chat: Chat, answer: ChatMessage, target: Asked) -> list[Message]:
    """What the model reads before this answer: the system prompt, and the turns as this model answered them."""
    messages = [Message(role="system", content=chat.system_prompt)] if chat.system_prompt else []
    for turn in turns(session, chat):
        if turn.question.position >= answer.position:
            break
        said = next((m for m in turn.answers if m.model_ref == target.ref and m.id != answer.id), None)
        if said is None and turn.question.id != answer.parent_id:
            said = next((m for m in turn.answers if m.content), None)
        if turn.question.id != answer.parent_id and (said is None or not said.content):
            continue
        messages.append(Message(role="user", content=turn.question.content))
        if turn.question.id == answer.parent_id:
            break
        if said is not None:
            messages.append(Message(role="assistant", content=said.content))
    return messages


def rename(session: Session, actor: Actor, chat_id: str, title: str) -> Chat:
    """Give a chat another name."""
    chat = get(session, actor, chat_id, need=ASKS)
    chat.title = title
    return chat


def delete(session: Session, actor: Actor, chat_id: str) -> Chat:
    """Put a chat away; `restore` brings it back."""
    chat = get(session, actor, chat_id, need=ASKS)
    chat.deleted_at = utcnow()
    return chat


def restore(session: Session, actor: Actor, chat_id: str) -> Chat:
    """Undo a deletion."""
    chat = session.get(Chat, chat_id)
    if chat is None:
        raise NotFound
    projects.get(session, actor, chat.project_id, need=ASKS)
    chat.deleted_at = None
    return chat


def names(session: Session, actor: Actor, chat: Chat) -> dict[str, str]:
    """Names of the models that spoke in a chat; of those that are gone, a word that says so."""
    found: dict[str, Any] = {}
    query = select(ChatMessage.model_ref).where(ChatMessage.chat_id == chat.id, ChatMessage.model_ref != "").distinct()
    for ref in [*session.scalars(query), *chat.model_refs]:
        if ref not in found:
            try:
                found[ref] = asked.resolve(session, actor, chat.project_id, ref).name
            except NotFound:
                found[ref] = "A model that was deleted"
    return found


@dataclass(frozen=True)
class Memory:
    """How full a model's context was after its newest answer, in tokens."""

    used: int
    all: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.used / self.all)


def memory(shown: Sequence[Turn], target: Asked | None) -> Memory | None:
    """What the conversation takes of `target`'s context; None before its first answer, and of an external model."""
    if not isinstance(target, Target):
        return None
    context = targets.context_tokens(target.files)
    answers = [
        m for turn in shown for m in turn.answers if m.model_ref == target.ref and "prompt_tokens" in m.statistics
    ]
    if not context or not answers:
        return None
    counts = answers[-1].statistics
    return Memory(counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0), context)


def memory_of(session: Session, actor: Actor, chat: Chat) -> Memory | None:
    """As `memory`, for the first model of a saved chat."""
    try:
        target = asked.resolve(session, actor, chat.project_id, chat.model_refs[0]) if chat.model_refs else None
    except NotFound:
        return None
    return memory(turns(session, chat), target)
