"""Probes of recipes: on the training device, between two runs."""

from app.core.work import claim, working
from app.recipes import probes
from app.recipes.models import Probe
from worker import node, probing
from worker.celery_app import celery_app


@celery_app.task(name=probes.TASK)
def make(probe_id: str) -> None:
    """Do the work of the row, if the device is free and nobody else has it; else it is rung for again."""
    with node.device_lock(node.own_devices()[0]) as mine:
        lease = claim(Probe, probe_id) if mine is not None else None
        if lease is not None:
            with working(lease):
                probing.make(lease)
