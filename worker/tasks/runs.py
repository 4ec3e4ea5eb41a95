"""The task of the `train` queue: work off what is queued on this worker's devices."""

from typing import Any

from celery import signals

from worker import node
from worker.celery_app import celery_app, draining
from worker.supervision import work_off


@celery_app.task(name="runs.train")
def train(run_id: str) -> None:
    """Claim and train until nothing is due. The id is only a hint: the claim is fair between workspaces."""
    for device in node.own_devices():
        work_off(device, draining)


@signals.worker_ready.connect
def look_around(**_: Any) -> None:
    """A worker that starts may have died in the middle of a run: let it look at once, without waiting for a ring."""
    train.apply_async(args=[""], queue="train", expires=30)
