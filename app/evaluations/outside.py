"""An external model in an evaluation: what leaves the machine, and the asking of it row by row."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.core.errors import AppError, Invalid
from app.datasets.models import DatasetVersion
from app.evaluations.models import TestCase
from app.externals import asking
from app.externals import service as externals
from app.externals.asking import Endpoint
from app.runs import service as runs
from app.runs.models import Run

LONGEST_ANSWER = 256  # tokens; a row's ideal answer may ask for fewer
MOST_FAILURES = 5  # one after another
NO_TEXTS = (
    "This model goes on from plain texts and is scored by the probability of each token, which external models do not "
    "tell. Choose nobody else here, or compare them in the chat."
)
_STOPPED = "Not asked any more, since it had failed so often: "


@dataclass(frozen=True)
class Leaving:
    """What an evaluation sends away, at most. `token` stands for exactly this in the form that confirms it."""

    name: str
    host: str
    questions: int
    has_system_prompt: bool
    token: str


def leaving(session: Session, actor: Actor, *, model_id: str, external_id: str, row_limit: int) -> Leaving:
    """What goes to an external model when it is compared with a model. Raises NotFound, Invalid where it cannot be."""
    model = runs.get_model(session, actor, model_id, need="editor")
    found = externals.resolve(session, actor, model.project_id, f"{externals.KIND}:{external_id}")
    run = session.get_one(Run, model.run_id)
    if run.frozen.get("dataset", {}).get("kind", "chat") == "text":
        raise Invalid(fields={"external_id": NO_TEXTS})
    version = session.get(DatasetVersion, run.version_id) if run.version_id else None
    rows = (version.test_rows or version.validation_rows) if version is not None else 0
    query = select(func.count()).select_from(TestCase)
    own = session.scalar(query.where(TestCase.project_id == model.project_id, TestCase.ideal != "")) or 0
    return Leaving(
        name=found.name, host=found.host, questions=min(rows, row_limit) + own,
        has_system_prompt=bool(run.frozen.get("system_prompt")), token=f"{model_id}/{external_id}/{row_limit}",
    )  # fmt: skip


def frozen(session: Session, actor: Actor, project_id: str, external_id: str) -> dict[str, str]:
    """Whom to ask, for the plan: no address and no key, which are read when it is asked. Raises NotFound."""
    found = externals.resolve(session, actor, project_id, f"{externals.KIND}:{external_id}")
    return {"ref": found.ref, "name": found.name, "host": found.host}


@dataclass(frozen=True)
class Answer:
    """What an external model said to a row, or why it said nothing; counts are the server's own."""

    text: str = ""
    problem: str = ""
    counts: dict[str, float] | None = None


class Outside:
    """The external model of a running evaluation, asked from several threads. A wrong key or name ends it at once, and
    so do failures one after another: rows that follow are told as failed without being sent."""

    def __init__(self, plan: dict[str, Any], is_wanted: Callable[[], bool]) -> None:
        self._is_wanted, self._lock = is_wanted, threading.Lock()
        self._failures, self._given_up = 0, ""
        self._endpoint: Endpoint | None = None
        try:
            self._endpoint = externals.endpoint(plan["ref"])
        except AppError as error:
            self._given_up = error.sentence

    def answer(self, messages: list[Message], limit: int) -> Answer:
        """Ask one question, greedily. Never raises for what goes wrong there."""
        with self._lock:
            if self._given_up or self._endpoint is None:
                return Answer(problem=self._given_up)
        sampling = Sampling(temperature=0, max_tokens=min(limit, LONGEST_ANSWER))
        try:
            event = asking.answered(self._endpoint, sampling, messages, self._is_wanted)
        except AppError as error:
            return self._failed(error)
        with self._lock:
            self._failures = 0
        counts = {
            "prompt_tokens": event.prompt_tokens or 0,
            "completion_tokens": event.completion_tokens or 0,
            "is_cut": event.finish_reason == "length",
        }
        return Answer(event.text.strip(), counts={name: float(value) for name, value in counts.items()})

    def _failed(self, error: AppError) -> Answer:
        is_hopeless = isinstance(error, Invalid) and not {"key", "model"}.isdisjoint(error.fields)
        with self._lock:
            self._failures += 1
            if not self._given_up and (is_hopeless or self._failures >= MOST_FAILURES):
                self._given_up = f"{_STOPPED}{error.sentence}" if not is_hopeless else error.sentence
        return Answer(problem=error.sentence)
