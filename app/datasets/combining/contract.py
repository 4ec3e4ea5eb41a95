"""How a version is made of other versions: merged, sampled, rebalanced or mixed. Kept with it, to make it again."""

from typing import Literal

from pydantic import Field, model_validator

from app.contracts.base import Contract

Operation = Literal["merge", "sample", "rebalance", "mix"]
Balance = Literal["label", "source"]


class Parent(Contract):
    """A version that rows are taken from. `version_id` and `folder` say where it lies; the rest is what it is."""

    version_id: str
    folder: str
    number: int
    manifest_sha256: str
    weight: float = Field(1, gt=0, le=1000)


class Combination(Contract):
    """What is taken of which versions. Rows keep their split; where two parents disagree, the test goes first."""

    operation: Operation
    parents: list[Parent] = Field(min_length=1, max_length=10)
    rows: int = Field(0, ge=0, le=10**9, description="sample, mix: how many rows in all; 0: as many as there are")
    by: Balance = "label"
    at_most: int = Field(0, ge=0, le=10**9, description="rebalance: rows of each value; 0: as many as the rarest has")
    is_repeated: bool = Field(False, description="rebalance: training rows of rarer values are repeated")
    seed: int = Field(1, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _has_its_parents(self) -> "Combination":
        if self.operation in ("merge", "mix") and len(self.parents) < 2:
            raise ValueError("Choose at least one other version.")
        if self.operation in ("sample", "rebalance") and len(self.parents) != 1:
            raise ValueError("This is done with one version.")
        if self.operation == "sample" and not self.rows:
            raise ValueError("Say how many rows the sample should have.")
        return self
