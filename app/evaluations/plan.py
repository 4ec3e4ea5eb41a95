"""Whom an evaluation asks, as JSON that a worker can read without an actor."""

from dataclasses import asdict
from typing import Any

from app.contracts.recipe import ModelFiles
from app.inference.targets import Target


def stored(target: Target) -> dict[str, Any]:
    """A target as JSON."""
    values = asdict(target)
    values["files"] = target.files.model_dump()
    values.pop("created_at", None)
    return values


def target_of(values: dict[str, Any]) -> Target:
    """The target behind what `stored` wrote."""
    return Target(**{**values, "files": ModelFiles.model_validate(values["files"])})
