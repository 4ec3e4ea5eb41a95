"""What the chat page sends."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from app.chat.corrections import LONGEST
from app.contracts.generation import Sampling
from app.core.forms import FormBase

SHOWN_ODDS = 3  # likeliest tokens told beside each one
REF = Annotated[str, Field(max_length=60)]


class AskForm(FormBase):
    """A message, and the settings that stand beside it."""

    message: str = Field(min_length=1, max_length=20_000)
    model: REF = ""
    compare: list[REF] = Field(default_factory=list, max_length=3)
    blind: bool = False
    odds: bool = False
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(256, ge=1, le=4096)
    system_prompt: str = Field("", max_length=8000)

    def sampling(self) -> Sampling:
        """As the model server takes it."""
        told = SHOWN_ODDS if self.odds else None
        return Sampling(temperature=self.temperature, max_tokens=self.max_tokens, top_logprobs=told)

    @field_validator("compare", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class EditForm(FormBase):
    """An earlier message in other words."""

    message: str = Field(min_length=1, max_length=20_000)


class FeedbackForm(FormBase):
    """A thumb (1, 0 or −1) and a note."""

    thumb: int = Field(0, ge=-1, le=1)
    note: str = Field("", max_length=2000)


class CorrectionForm(FormBase):
    """The better answer; empty takes it back."""

    correction: str = Field("", max_length=LONGEST)


class TitleForm(FormBase):
    """A chat's name."""

    title: str = Field(min_length=1, max_length=200)
