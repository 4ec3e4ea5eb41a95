"""One training example and its turns, the same in data, training, chat and API."""

from typing import Any, Literal

from pydantic import Field

from app.contracts.base import Contract

Role = Literal["system", "user", "assistant", "tool"]


class Message(Contract):
    """One turn. `train` false keeps an assistant turn as context that is not learned."""

    role: Role
    content: str
    train: bool = True
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Example(Contract):
    """One row of a dataset version: a conversation (`kind` "chat") or plain text (`kind` "text")."""

    rid: int = Field(ge=0, description="stable row id within the version")
    kind: Literal["chat", "text"]
    messages: list[Message] = Field(default_factory=list)
    text: str = ""
