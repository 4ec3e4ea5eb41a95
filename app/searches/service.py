"""Starting, reading and stopping searches. What makes them go on is in progress.py."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import RecipeSpec
from app.core.errors import Conflict, Invalid, NotFound
from app.projects import service as projects
from app.projects.models import Project
from app.recipes.service import Ready
from app.runs.models import Run
from app.searches import proposing
from app.searches.models import OPEN_STATES, Search, Trial
from app.searches.space import Dimension

MOST_RUNS = 100


def start(
    session: Session,
    actor: Actor,
    *,
    project_id: str,
    ready: Ready,
    space: Sequence[Dimension],
    way: str,
    points: int = 3,
    budget_runs: int | None = None,
    budget_hours: float | None = None,
    keeps_all: bool = False,
    client_request_id: str,
) -> Search:
    """Begin a search over the frozen recipe of `ready`. The same `client_request_id` gives the same search.

    Raises Invalid when it has no budget, or a grid of more runs than one search may have.
    """
    project = projects.get(session, actor, project_id, need="editor")
    session.execute(select(Project.id).where(Project.id == project.id).with_for_update())
    known = session.scalar(
        select(Search).where(Search.project_id == project.id, Search.client_request_id == client_request_id)
    )
    if known is not None:
        return known
    wrong = _wrong(way, points, budget_runs, budget_hours)
    if way == "grid" and not wrong and (size := proposing.grid_size(space, points)) > MOST_RUNS:
        wrong["points"] = (
            f"This grid has {size:,} combinations, more than the {MOST_RUNS} runs of a search. Vary fewer parameters, "
            "take fewer values each, or let it choose by itself."
        )
    if wrong:
        raise Invalid(fields=wrong)
    number = 1 + (session.scalar(select(func.max(Search.number)).where(Search.project_id == project.id)) or 0)
    search = Search(
        project_id=project.id,
        workspace_id=project.workspace_id,
        number=number,
        client_request_id=client_request_id,
        way=way,
        space=[one.model_dump() for one in space],
        points=points,
        budget_runs=budget_runs,
        budget_s=budget_hours * 3600 if budget_hours else None,
        keeps_all=keeps_all,
        version_id=ready.version_id,
        base_model_id=ready.base_model_id,
        parent_model_id=ready.parent_model_id,
        recipe=ready.recipe.model_dump(mode="json"),
        estimate=ready.estimate,
        created_by=actor.user_id,
    )
    session.add(search)
    session.flush()
    return search


def _wrong(way: str, points: int, budget_runs: int | None, budget_hours: float | None) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if way not in ("grid", "bayesian"):
        wrong["way"] = "Choose how it looks for values."
    if not 2 <= points <= 6:
        wrong["points"] = "Take 2 to 6 values of each parameter."
    if budget_runs is None and budget_hours is None:
        wrong["budget_runs"] = "Give a number of runs, a number of hours, or both."
    if budget_runs is not None and not 2 <= budget_runs <= MOST_RUNS:
        wrong["budget_runs"] = f"Choose 2 to {MOST_RUNS} runs."
    if budget_hours is not None and not 0.01 <= budget_hours <= 1000:
        wrong["budget_hours"] = "Choose between 0.01 and 1,000 hours."
    return wrong


def get(session: Session, actor: Actor, search_id: str, *, need: str = "viewer") -> Search:
    """The search, for somebody who may see its project."""
    search = session.get(Search, search_id)
    if search is None:
        raise NotFound
    projects.get(session, actor, search.project_id, need=need)
    return search


def listing(session: Session, actor: Actor, project_id: str) -> Sequence[Search]:
    """All searches of a project, newest first."""
    projects.get(session, actor, project_id)
    return session.scalars(select(Search).where(Search.project_id == project_id).order_by(Search.number.desc())).all()


def trials(session: Session, search: Search) -> list[tuple[Trial, Run]]:
    """The search's runs, first to last."""
    query = select(Trial, Run).join(Run, Run.id == Trial.run_id).where(Trial.search_id == search.id)
    return [(trial, run) for trial, run in session.execute(query.order_by(Trial.number))]


def request_stop(session: Session, actor: Actor, search_id: str) -> Search:
    """Start no more runs; what trains now is stopped and kept. Raises Conflict when the search has ended."""
    search = get(session, actor, search_id, need="editor")
    if search.state not in OPEN_STATES:
        raise Conflict("This search has already ended.")
    search.state, search.sentence = "stopping", f"Stopped by {actor.name}." if actor.name else "Stopped."
    session.flush()
    return search


def recipe_of(search: Search) -> RecipeSpec:
    """The recipe that the search varies."""
    return RecipeSpec.model_validate(search.recipe)


def space_of(search: Search) -> list[Dimension]:
    """What it varies."""
    return [Dimension.model_validate(one) for one in search.space]


def shown(search: Search, values: dict[str, Any]) -> dict[str, str]:
    """A trial's values as words, by field name."""
    return {one.name: one.shown(values[one.name]) for one in space_of(search) if one.name in values}
