"""What an export is told and what it found: the words between the task and its child process."""

from typing import Literal

from pydantic import Field

from app.contracts.base import Contract
from app.contracts.recipe import ModelFiles

ExportKind = Literal["adapter", "merged", "gguf_f16", "gguf_q8_0", "gguf_q4_0"]
COMPARED_TOKENS = 32


class ExportOrder(Contract):
    """First line of the child's standard input, as JSON."""

    kind: ExportKind
    files: ModelFiles
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,80}$", description="stem of the files' names")
    title: str = Field("", max_length=200)
    is_chat: bool = True
    system_prompt: str = ""
    prompts: list[str] = Field(min_length=1, max_length=8)
    base_name: str = Field("", description="what an adapter names as its base")
    out_dir: str
    memory_bytes: int = Field(0, ge=0, description="address space of the child; 0: no limit")


class Check(Contract):
    """How the exported files answered beside the model they came from. `tool`: what loaded them, with its version."""

    tool: str
    prompts: int = 0
    same_prompts: int = Field(0, description="prompts whose compared tokens are all the same")
    tokens: int = Field(0, description="compared")
    same_tokens: int = Field(0, description="up to the first difference of each prompt")
    tensors: int = Field(0, description="read back and compared")

    @property
    def is_exact(self) -> bool:
        """Whether every compared token is the same."""
        return self.same_prompts == self.prompts


class ExportReport(Contract):
    """What was written. `number_format`: of the weights; `notes`: sentences for people."""

    number_format: str
    checks: list[Check] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    parameters: int = 0
