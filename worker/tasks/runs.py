"""The task of the `train` queue: work off what is queued on this worker's device."""

import os
from typing import Any

from celery import signals

from worker.celery_app import celery_app, draining
from worker.supervision import work_off


@celery_app.task(name="runs.train")
def train(run_id: str) -> None:
    """Claim and train until nothing is due. The id is only a hint: the claim is fair between workspaces."""
    work_off(os.environ.get("CUDA_VISIBLE_DEVICES") or "0", draining)


@signals.worker_ready.connect
def look_around(**_: Any) -> None:
    """A worker that starts may have died in the middle of a run: let it look at once, without waiting for a ring."""
    train.apply_async(args=[""], queue="train", expires=30)
