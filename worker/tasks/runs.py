"""The task of the `train` queue: work off what is queued on this worker's device."""

import os

from worker.celery_app import celery_app, draining
from worker.supervision import work_off


@celery_app.task(name="runs.train")
def train(run_id: str) -> None:
    """Claim and train until nothing is due. The id is only a hint: the claim is fair between workspaces."""
    work_off(os.environ.get("CUDA_VISIBLE_DEVICES") or "0", draining)
