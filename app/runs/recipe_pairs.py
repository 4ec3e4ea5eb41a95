"""Two recipes side by side: the recipe page's own, a saved one, or that of a run. Only what differs, or everything."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.errors import NotFound
from app.core.translations import gettext as _
from app.recipes import saved
from app.recipes import service as recipes
from app.runs import service
from app.runs.comparison import Row, as_trained, recipe_rows

NOW = "now"
_MOST_RUNS = 50


@dataclass(frozen=True)
class Side:
    """One recipe: its name, its page, where it comes from, its values and its base."""

    name: str
    url: str
    origin: str
    values: dict[str, Any]
    base: str


@dataclass(frozen=True)
class Pair:
    """Two recipes and the rows of their table."""

    sides: list[Side]
    rows: list[Row]

    def shown(self, everything: bool) -> dict[str, list[Row]]:
        """The rows that differ, or all of them, under their heading; empty where nothing differs."""
        kept = [row for row in self.rows if everything or row.differs]
        return {_("Recipe"): kept} if kept else {}

    @property
    def differing(self) -> int:
        """In how many properties they differ."""
        return sum(row.differs for row in self.rows)


def choices(session: Session, actor: Actor, project_id: str) -> dict[str, list[tuple[str, str]]]:
    """(value, name) of everything that can be compared in this project, by where it comes from."""
    found: dict[str, list[tuple[str, str]]] = {}
    if recipes.page(session, actor, project_id).composed is not None:
        found[_("This project")] = [(NOW, _("The recipe page as it is"))]
    if kept := saved.listing(session, actor, project_id):
        found[_("Saved recipes")] = [(f"saved:{one.id}", one.name) for one in kept]
    if runs := service.listing(session, actor, project_id)[:_MOST_RUNS]:
        found[_("Runs")] = [(f"run:{run.id}", f"{run.number} · {run.name}") for run in runs]
    return found


def compare(session: Session, actor: Actor, project_id: str, one: str, two: str) -> Pair:
    """The two named recipes. Raises NotFound for one that this project cannot see."""
    sides = [_side(session, actor, project_id, name) for name in (one, two)]
    rows = [Row(_("Base model"), [side.base for side in sides]), *recipe_rows([side.values for side in sides])]
    return Pair(sides, rows)


def _side(session: Session, actor: Actor, project_id: str, name: str) -> Side:
    kind, _colon, key = name.partition(":")
    if name == NOW:
        page = recipes.page(session, actor, project_id)
        if page.composed is None or page.chosen is None:
            raise NotFound
        base = page.chosen.base.name if page.chosen.base else _("a new GPT")
        url = f"/projects/{project_id}/recipe"
        return Side(_("The recipe page"), url, _("as it is now"), page.composed.values, base)
    if kind == "saved":
        kept = saved.get(session, actor, project_id, key)
        url = f"/projects/{project_id}/recipes"
        return Side(kept.name, url, _("Saved recipe"), kept.recipe, kept.base_name or _("a new GPT"))
    run = next((run for run in service.listing(session, actor, project_id) if run.id == key), None)
    if kind != "run" or run is None:
        raise NotFound
    base = (run.frozen.get("base_about") or {}).get("name") or _("a new GPT")
    return Side(run.name, f"/runs/{run.id}", _("Run %(number)s", number=run.number), as_trained(run), base)
