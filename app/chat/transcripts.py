"""A conversation as a file: Markdown to read, JSONL rows to train on."""

import re
from itertools import zip_longest

import orjson
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.chat import service
from app.chat.models import Chat


def file_stem(chat: Chat) -> str:
    """A harmless file name of the title."""
    return re.sub(r"[^a-z0-9]+", "-", chat.title.lower()).strip("-")[:60] or "chat"


def markdown(session: Session, actor: Actor, chat: Chat) -> str:
    """The versions that are shown, each answer under its model's name."""
    names = service.names(session, actor, chat)
    parts = [f"# {' '.join(chat.title.split()) or 'Chat'}"]
    if chat.system_prompt:
        parts.append("\n".join(f"> {line}" for line in chat.system_prompt.splitlines()))
    for turn in service.turns(session, chat):
        parts += ["## You", turn.question.content]
        for answer in turn.answers:
            name = f"Answer {turn.letter(answer)}" if turn.is_masked else names.get(answer.model_ref, "Model")
            parts += [f"## {name}", answer.content or "(nothing)"]
    return "\n\n".join(parts) + "\n"


def jsonl(session: Session, actor: Actor, chat: Chat) -> str:
    """One line for each model that was asked: {"messages": […]}, as files of conversations are brought in."""
    shown = service.turns(session, chat)
    lanes = list(zip_longest(*(turn.answers for turn in shown))) if shown else []
    lines = []
    for lane in lanes:
        messages = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
        for turn, answer in zip(shown, lane, strict=True):
            if answer is not None and answer.content:
                messages.append({"role": "user", "content": turn.question.content})
                messages.append({"role": "assistant", "content": answer.content})
        if any(message["role"] == "assistant" for message in messages):
            lines.append(orjson.dumps({"messages": messages}).decode())
    return "".join(f"{line}\n" for line in lines)
