"""What the chat page sends."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from app.chat.corrections import LONGEST
from app.chat.models import TAGS
from app.contracts.generation import Sampling
from app.core.forms import FormBase
from app.core.markdown import one_line

SHOWN_ODDS = 3  # likeliest tokens told beside each one
STOPS, STOP_LENGTH = 16, 200
PLAIN = ("temperature", "max_tokens", "top_p", "repetition_penalty", "seed", "stop")
REF = Annotated[str, Field(max_length=60)]


class SettingsForm(FormBase):
    """The settings that stand beside a conversation, with the message that may just be written."""

    message: str = Field("", max_length=20_000)
    model: REF = ""
    compare: list[REF] = Field(default_factory=list, max_length=3)
    seen: list[str] = Field(default_factory=list, description="questions that stand on the page it is sent from")
    blind: bool = False
    odds: bool = False
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(256, ge=1, le=4096)
    top_p: float = Field(1.0, ge=0.05, le=1)
    repetition_penalty: float = Field(1.0, ge=1, le=2)
    seed: int | None = Field(None, ge=0, le=2**53)
    stop: list[str] = Field(default_factory=list)
    system_prompt: str = Field("", max_length=8000)

    def sampling(self) -> Sampling:
        """As the model server takes it."""
        told = SHOWN_ODDS if self.odds else None
        return Sampling(**{name: getattr(self, name) for name in PLAIN}, top_logprobs=told)

    @field_validator("compare", "seen", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("seed", mode="before")
    @classmethod
    def _any_or_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("stop", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        lines = [line for line in str(value).splitlines() if line.strip()]
        if len(lines) > STOPS or any(len(line) > STOP_LENGTH for line in lines):
            raise ValueError(f"At most {STOPS} lines of up to {STOP_LENGTH} characters.")
        return lines


class AskForm(SettingsForm):
    """A message, and the settings that stand beside it."""

    message: str = Field(min_length=1, max_length=20_000)


class EditForm(FormBase):
    """An earlier message in other words."""

    message: str = Field(min_length=1, max_length=20_000)


class FeedbackForm(FormBase):
    """A thumb (1, 0 or −1); tags and a note where they are sent: without them what was said stays."""

    thumb: int = Field(0, ge=-1, le=1)
    note: str | None = Field(None, max_length=2000)
    tags: list[Annotated[str, Field(max_length=20)]] | None = Field(None, max_length=20)

    @field_validator("tags", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("tags")
    @classmethod
    def _are_known(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and {*value} - {*TAGS, ""}:
            raise ValueError("Choose from the tags that are shown.")
        return value and [tag for tag in value if tag]


class CorrectionForm(FormBase):
    """The better answer; empty takes it back."""

    correction: str = Field("", max_length=LONGEST)


class TitleForm(FormBase):
    """A chat's name."""

    title: str = Field(min_length=1, max_length=200)

    @field_validator("title", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        return one_line(value) if isinstance(value, str) else value
