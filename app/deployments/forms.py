"""The forms of the publish page."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from app.core.forms import FormBase


class KeyForm(FormBase):
    """A new API key."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: list[Literal["read", "chat", "train"]] = Field(min_length=1)
    reach: Literal["project", "workspace"] = "project"
    days: Annotated[int, Field(ge=0, le=3650)] = 90
    requests_per_minute: Annotated[int, Field(ge=1, le=100_000)] = 120

    tokens_per_minute: Annotated[int, Field(ge=0, le=10**9)] = 0
    monthly_tokens: Annotated[int, Field(ge=0, le=10**12)] = 0
    models: list[Annotated[str, Field(max_length=120)]] = Field(default_factory=list, max_length=100)

    @field_validator("scopes", "models", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class TryForm(FormBase):
    """One question to one model."""

    model: Annotated[str, Field(min_length=1, max_length=120)]
    question: Annotated[str, Field(min_length=1, max_length=4000)]
