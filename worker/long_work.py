"""Leased work that is not a run: the table, and the task of the queue `data` that does it."""

from typing import Any

from app.datasets import service as datasets
from app.drafting.models import Drafting
from app.evaluations.models import Evaluation
from app.exports.models import Export
from app.recipes.models import BaseModelEntry, Probe
from app.sources.models import Forgetting

LONG_WORK: tuple[tuple[type[Any], str], ...] = (
    *datasets.WATCHED,
    (BaseModelEntry, "recipes.bring"),
    (Evaluation, "evaluations.run"),
    (Export, "exports.make"),
    (Forgetting, "sources.forget"),
    (Drafting, "drafts.draft"),
)
# The same on the queue `train`, between two runs of the device.
DEVICE_WORK: tuple[tuple[type[Any], str], ...] = ((Probe, "probes.make"),)
