"""How a search goes on: the housekeeper looks at its runs every few seconds, ends hopeless ones and starts the next.

Every look starts from the rows and may be repeated or interrupted anywhere: a trial and its run are written in one
transaction, under an id that the search and the trial's number give.
"""

import contextlib
import logging
from collections.abc import Sequence
from statistics import median
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.accounts.models import Member, User
from app.accounts.service import Actor
from app.core.db import reading, transaction, utcnow
from app.core.errors import AppError, Conflict
from app.core.numbers import duration, number
from app.core.numbers import loss as shown_loss
from app.runs import discarding
from app.runs import service as runs
from app.runs.models import END_STATES, LIVE_STATES, Attempt, Checkpoint, MetricPoint, Model, Run
from app.runs.states import move
from app.searches import proposing, pruning, service, space
from app.searches.models import OPEN_STATES, Search, Trial
from app.searches.proposing import Tried

log = logging.getLogger(__name__)
_FAILURES_IN_A_ROW = 3
_SEED = 7
# Runs of a search wait behind the runs that the same person starts by hand.
PRIORITY = -1


def advance_all() -> int:
    """One look at every open search, each in a transaction of its own; how many there were."""
    with reading() as session:
        ids = list(session.scalars(select(Search.id).where(Search.state.in_(OPEN_STATES)).order_by(Search.id)))
    for search_id in ids:
        try:
            with transaction() as session:
                advance(session, search_id)
        except Conflict:
            log.info("a run of search %s moved on meanwhile; it is looked at again", search_id)
        except Exception:
            log.exception("search %s was not advanced; it is tried again", search_id)
    _erase_discarded()
    return len(ids)


def advance(session: Session, search_id: str) -> None:
    """Look at one search: prune, keep to the budget, start the next run, name the best, give up the others, end."""
    search = session.get(Search, search_id, with_for_update=True)
    if search is None or search.state not in OPEN_STATES:
        return
    known = service.trials(session, search)
    live = [(trial, run) for trial, run in known if run.state not in END_STATES]
    spent = spent_s(session, [run.id for _, run in known])
    is_spent = search.budget_s is not None and spent >= search.budget_s
    looks = {run.id: _looks(session, run) for _, run in known}
    if search.state == "stopping" or is_spent:
        for _, run in live:
            _end(session, run, "The search ended." if search.state == "stopping" else "The search's hours are used up.")
    else:
        for trial, run in live:
            _prune(session, trial, run, looks)
    _name_best(session, search, known)
    _discard_losers(session, search, known)
    if live:
        return
    if search.state == "stopping":
        _finish(search, "stopped", search.sentence)
    elif is_spent:
        _finish(search, "succeeded", f"Its {duration(search.budget_s)} of machine time are used up.")
    else:
        _go_on(session, search, known, spent)


def spent_s(session: Session, run_ids: Sequence[str]) -> float:
    """Seconds that these runs have held a device."""
    query = select(Attempt.started_at, Attempt.ended_at).where(Attempt.run_id.in_(run_ids))
    return sum(((row.ended_at or utcnow()) - row.started_at).total_seconds() for row in session.execute(query))


def _go_on(session: Session, search: Search, known: list[tuple[Trial, Run]], spent: float) -> None:
    """Start the next run, or end the search with the reason why there is none."""
    if search.budget_runs is not None and len(known) >= search.budget_runs:
        _finish(search, "succeeded", f"All {number(search.budget_runs)} runs are done.")
        return
    if len(known) >= service.MOST_RUNS:
        _finish(search, "succeeded", f"It has had {service.MOST_RUNS} runs, the most that a search may have.")
        return
    newest = [run for _, run in known[-_FAILURES_IN_A_ROW:]]
    if len(newest) == _FAILURES_IN_A_ROW and all(run.state == "failed" and run.reason != "diverged" for run in newest):
        reason = newest[-1].sentence.split("\n\n", 1)[0]
        _finish(search, "failed", f"Three runs in a row failed, the last with: {reason}")
        return
    usual = [run.trained_s for _, run in known if run.state == "succeeded"]
    if search.budget_s is not None and usual and search.budget_s - spent < 0.5 * median(usual):
        _finish(search, "succeeded", "What is left of its hours is too little for another run.")
        return
    actor = _actor(session, search)
    if actor is None or not actor.may(search.workspace_id, "editor"):
        _finish(search, "failed", "Whoever started it may no longer start runs here. An editor can search again.")
        return
    values = propose(search, known)
    if values is None:
        _finish(search, "succeeded", "Every combination has been tried.")
        return
    try:
        with session.begin_nested():
            _start(session, actor, search, len(known) + 1, values)
    except AppError as error:
        reason = next(iter(getattr(error, "fields", {}).values()), error.sentence)
        _finish(search, "failed", f"The next run could not be started. {reason}")


def propose(search: Search, known: Sequence[tuple[Trial, Run]]) -> dict[str, Any] | None:
    """The values of the next trial; None when there are none left."""
    dimensions = service.space_of(search)
    worst = max((run.best_loss for _, run in known if run.best_loss is not None), default=0.0)
    tried = [Tried(trial.values, _result(run, worst), run.state in END_STATES) for trial, run in known]
    if search.way == "grid":
        return proposing.next_of_grid(dimensions, search.points, tried, _SEED)
    first = space.own_values(service.recipe_of(search), dimensions)
    return proposing.next_of_bayes(dimensions, tried, _SEED, first)


def _result(run: Run, worst: float) -> float | None:
    """What a run says about its values: its lowest loss; one that diverged counts as worse than all."""
    if run.state == "failed" and run.reason == "diverged":
        return worst + 1.0
    return run.best_loss if run.state in ("succeeded", "cancelled") else None


def _start(session: Session, actor: Actor, search: Search, trial_number: int, values: dict[str, Any]) -> None:
    base = service.recipe_of(search)
    recipe = space.applied(base, values)
    words = ", ".join(service.shown(search, values).values())
    scale = recipe.epochs / base.epochs
    estimate = dict(search.estimate)
    for name, factor in (("seconds", scale), ("steps", scale * base.batch_size / recipe.batch_size), ("tokens", scale)):
        if estimate.get(name):
            estimate[name] = type(estimate[name])(estimate[name] * factor)
    run = runs.start(
        session,
        actor,
        project_id=search.project_id,
        version_id=search.version_id or "",
        recipe=recipe,
        client_request_id=f"search-{search.id}-{trial_number}",
        name=f"Search {search.number}.{trial_number}: {words}",
        base_model_id=search.base_model_id,
        parent_model_id=search.parent_model_id,
        estimate=estimate,
    )
    run.priority = PRIORITY
    session.add(Trial(search_id=search.id, number=trial_number, run_id=run.id, values=values))
    session.flush()


def _looks(session: Session, run: Run) -> list[tuple[int, float]]:
    query = select(MetricPoint.step, MetricPoint.value).where(
        MetricPoint.run_id == run.id, MetricPoint.name == "validation_loss"
    )
    rows = session.execute(query.order_by(MetricPoint.step))
    return [(row.step * int(run.recipe["batch_size"]), row.value) for row in rows]


def _prune(session: Session, trial: Trial, run: Run, looks: dict[str, list[tuple[int, float]]]) -> None:
    if run.state != "running" or run.want != "run" or run.total_steps <= run.step:
        return
    found = pruning.behind(looks[run.id], [points for other, points in looks.items() if other != run.id])
    if found is None:
        return
    trial.pruned_at_step = run.step
    trial.pruned_because = (
        f"Its best validation loss was {shown_loss(found.best)} when the middle of {found.others} others after as "
        f"many rows was {shown_loss(found.middle)}."
    )
    diary = f"Ended early by the search. {trial.pruned_because}"
    move(session, run.id, "cancelling", only_from=("running",), want="cancel", diary=diary, kind="pruned")


def _end(session: Session, run: Run, why: str) -> None:
    """Stop and keep what trains and has a checkpoint; cancel the rest. Raises Conflict when it moved on meanwhile."""
    if run.state in ("finalizing", "cancelling") or run.want in ("stop", "cancel"):
        return
    has_kept = session.scalar(select(Checkpoint.id).where(Checkpoint.run_id == run.id, Checkpoint.state == "kept"))
    if run.state == "running" and has_kept:
        run.want = "stop"
        return
    to = "cancelling" if run.state in LIVE_STATES else "cancelled"
    move(session, run.id, to, only_from=(run.state,), want="cancel", diary=why, kind="cancel")


def _name_best(session: Session, search: Search, known: Sequence[tuple[Trial, Run]]) -> None:
    """Keep which finished run is best, and the sentence that says why."""
    ids = [run.id for _, run in known if run.state == "succeeded"]
    kept = set(session.scalars(select(Model.run_id).where(Model.run_id.in_(ids), Model.deleted_at.is_(None))))
    ended = sorted(
        ((run.best_loss, trial.number, run) for trial, run in known if run.id in kept and run.best_loss is not None),
        key=lambda one: one[:2],
    )
    if not ended:
        return
    least, trial_number, best = ended[0]
    search.best_run_id = best.id
    values = next(trial.values for trial, _ in known if trial.number == trial_number)
    what = ", ".join(
        f"{space.fields.BY_NAME[name].label.lower()} {text}" for name, text in service.shown(search, values).items()
    )
    all_losses = [run.best_loss for _, run in known if run.best_loss is not None]
    sentence = f"Lowest validation loss of {len(all_losses)} runs: {shown_loss(least)}, with {what}."
    if len(all_losses) > 2:
        sentence += f" The middle of all is {shown_loss(median(all_losses))}."
    # Among all that ended well: of another its values are of use, even where its weights are given up.
    others = [(run.best_loss, trial.number) for trial, run in known if run.id in ids and run.id != best.id]
    second = min(((loss, at) for loss, at in others if loss is not None), default=None)
    if second and second[0] - least < 0.005 * least:
        sentence += f" Trial {second[1]} is within 0.5 % of it, which another seed can turn round: either will do."
    search.best_sentence = sentence


def _discard_losers(session: Session, search: Search, known: Sequence[tuple[Trial, Run]]) -> None:
    """Give up the weights of every run that has ended and is not the best, unless all are to be kept."""
    if search.keeps_all or search.best_run_id is None:
        return
    for trial, run in known:
        if run.state in END_STATES and run.id != search.best_run_id and trial.freed_bytes is None:
            with contextlib.suppress(Conflict):
                trial.freed_bytes = discarding.discard(
                    session, run, f"Search {search.number} keeps only the model of its best run."
                )


def _erase_discarded() -> None:
    """Delete from disk what was given up, now or before an interruption."""
    with reading() as session:
        waiting = list(session.scalars(select(Trial.run_id).where(Trial.freed_bytes >= 0, ~Trial.is_erased)))
    for run_id in waiting:
        try:
            discarding.erase(run_id)
        except OSError:
            log.warning("the weights of run %s are still there; it is tried again", run_id, exc_info=True)
            continue
        with transaction() as session:
            session.execute(update(Trial).where(Trial.run_id == run_id).values(is_erased=True))


def _finish(search: Search, state: str, sentence: str) -> None:
    search.state, search.sentence, search.ended_at = state, sentence, utcnow()


def _actor(session: Session, search: Search) -> Actor | None:
    """Whoever started the search, with the roles of today."""
    user = session.get(User, search.created_by) if search.created_by else None
    if user is None or not user.is_active:
        return None
    rows = session.execute(select(Member.workspace_id, Member.role).where(Member.user_id == user.id))
    return Actor(user_id=user.id, email=user.email, name=user.name, roles={row.workspace_id: row.role for row in rows})
