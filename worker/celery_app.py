"""The workers' Celery application. Tasks live in worker/tasks and only supervise: the work is in child processes.

A worker runs its tasks in threads of one process: nothing is forked, a killed worker takes no half-alive pool with it,
and a task sees `draining` as soon as the worker is told to stop.
"""

import importlib
import logging
import pkgutil
import threading
import warnings
from typing import Any

from celery import Celery, signals

import app.models  # noqa: F401 - foreign keys resolve only when every table is known
import worker.tasks
from app.core import logging as log_setup
from app.core.config import get_settings
from app.core.queue import celery_settings
from app.core.redis_server import celery_url
from worker.alive import Alive

log = logging.getLogger(__name__)

# Set when this worker is told to stop: a task saves, gives its row back and returns.
draining = threading.Event()

_settings = get_settings()
celery_app = Celery(
    "gpt-builder",
    broker=celery_url(_settings.redis_url_worker or _settings.redis_url) or "memory://",
    task_cls="worker.turns:TurnTask",
)
celery_app.conf.update(celery_settings())
celery_app.conf.update(
    worker_pool="threads",
    broker_connection_max_retries=None,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    include=[f"worker.tasks.{module.name}" for module in pkgutil.iter_modules(worker.tasks.__path__)],
    worker_consumer="worker.broker:Consumer",
)

celery_app.steps["consumer"].add(Alive)


@signals.worker_shutting_down.connect
def _start_draining(**_: Any) -> None:
    draining.set()


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    log_setup.configure()


def serve(queue: str, concurrency: int) -> None:
    """Work on `queue` until told to stop; an import error in a task module ends the process at once."""
    Alive.queue = queue
    for name in celery_app.conf.include:
        importlib.import_module(name)
    arguments = ["worker", "--queues", queue, "--concurrency", str(concurrency), "--hostname", f"{queue}@%h"]
    warnings.filterwarnings("ignore", message=".*superuser privileges.*")
    log.info("waits for work on the queue %s", queue)
    celery_app.worker_main(["--quiet", *arguments, "--without-gossip", "--without-mingle", "--loglevel", "warning"])
