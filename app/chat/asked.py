"""Whom a chat can ask: what the project can serve itself, and the external models of its workspace."""

from collections.abc import Generator

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.conversation import Message
from app.contracts.generation import Sampling, TokenEvent
from app.externals import asking
from app.externals import service as externals
from app.externals.service import External
from app.inference import client, targets
from app.inference.targets import Choice, Target

Asked = Target | External


def resolve(session: Session, actor: Actor, project_id: str, ref: str) -> Asked:
    """What `ref` names. Raises NotFound for what is not there or not the actor's."""
    if ref.startswith(f"{externals.KIND}:"):
        return externals.resolve(session, actor, project_id, ref)
    return targets.resolve(session, actor, project_id, ref)


def choices(session: Session, actor: Actor, project_id: str) -> list[Choice]:
    """Everything that can be asked in a project, its own models first; of external ones it is said who reads along."""
    outside = [externals.as_asked(row) for row in externals.listing(session, actor, project_id)]
    return targets.choices(session, actor, project_id) + [
        Choice(one.ref, f"{one.name} · {one.host}", externals.KIND) for one in outside
    ]


def generate(asked: Asked, sampling: Sampling, messages: list[Message]) -> Generator[TokenEvent]:
    """Events of one answer. Raises Unavailable, or NotFound for an external model that was removed meanwhile."""
    if isinstance(asked, External):
        return asking.stream(externals.endpoint(asked.ref), sampling, messages)
    if asked.is_chat:
        return client.generate(client.request_for(asked, sampling, messages=messages))
    # A model of plain text goes on from the words; it knows no turns.
    words = next((m.content for m in reversed(messages) if m.role == "user"), "")
    return client.generate(client.request_for(asked, sampling, prompt=words))
