"""What a version is made of: files with their mappings, steps, overrides, split. Frozen with the version."""

import hashlib
from typing import Literal

import orjson
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.mapping import Mapping
from app.datasets.options import ReadOptions
from app.datasets.splitting import SplitSettings
from app.datasets.steps.catalogue import STEPS, in_order
from app.datasets.steps.contract import ChosenStep
from app.datasets.steps.tokens import Reading


class PlannedFile(Contract):
    """A source file in a plan. `file_id` and `rows_dir` are where it lies; the rest is what it is."""

    file_id: str
    filename: str
    sha256: str
    rows: int
    rows_dir: str
    mapping: Mapping
    options: ReadOptions = Field(default_factory=ReadOptions)


class PlannedEdits(Contract):
    """Changes by hand (`edits.EditLayer`): where the file lies, and what it is."""

    path: str
    sha256: str


class Override(Contract):
    """A person's word against a step, kept through every new preparation.

    `scope` row: the row with this content (see `overrides.content_keys`) is left as it is by this step. like: every
    row of the same kind. code: all rows, for this reason. `key` is the hash of the content, hexadecimal.
    """

    scope: Literal["row", "like", "code"]
    step: str = Field(max_length=40)
    code: str = Field("", max_length=40, description="empty: whatever the reason")
    key: str = Field("", max_length=16)


class Plan(Contract):
    """Everything that makes a version again."""

    files: list[PlannedFile] = Field(default_factory=list)
    steps: list[ChosenStep] = Field(default_factory=list)
    overrides: list[Override] = Field(default_factory=list)
    split: SplitSettings = Field(default_factory=SplitSettings)
    edits: PlannedEdits | None = None
    reading: Reading | None = Field(None, description="the base model, for steps that are tried before they are chosen")

    def applied(self) -> list[ChosenStep]:
        """The steps that run, in order."""
        return [step for step in in_order(self.steps) if step.mode != "off"]

    def digest(self) -> str:
        """Names the working set of this plan: equal for equal rows, mappings and steps read by the same code."""
        body = self.model_dump(mode="json", exclude={"split": True, "edits": {"path"}, "reading": True})
        versions = {name: step.version for name, step in STEPS.items()}
        packed = orjson.dumps([body, versions, pl.__version__], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(packed).hexdigest()[:20]
