"""The task of an evaluation: claim it, ask and score through the model server, sum up."""

from celery import shared_task

from app.core.db import reading
from app.core.work import claim, working
from app.evaluations import running, service
from app.evaluations.models import Evaluation
from worker.standing_in import standing_in


@shared_task(name=service.TASK)
def run(evaluation_id: str) -> bool:
    """Do the work of the evaluation, if nobody else has it."""
    lease = claim(Evaluation, evaluation_id)
    if lease is None:
        return False
    with standing_in(lease), working(lease):
        with reading() as session:
            evaluation = session.get_one(Evaluation, evaluation_id)
        running.run(lease, evaluation)
    return True
