"""Recipes kept under a name: saved from a project's recipe page, used in every project of the same workspace."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import RecipeSpec
from app.core.db import utcnow
from app.core.errors import Conflict, Invalid, NotFound
from app.core.translations import gettext as _
from app.projects import service as projects
from app.projects.models import Project
from app.recipes import service
from app.recipes.models import BaseModelEntry, SavedRecipe

MOST = 200


def listing(session: Session, actor: Actor, project_id: str) -> list[SavedRecipe]:
    """The saved recipes of the project's workspace, by name."""
    project = projects.get(session, actor, project_id)
    query = select(SavedRecipe).where(SavedRecipe.workspace_id == project.workspace_id)
    return list(
        session.scalars(
            query.where(SavedRecipe.deleted_at.is_(None)).order_by(func.lower(SavedRecipe.name)).limit(MOST)
        )
    )


def get(session: Session, actor: Actor, project_id: str, saved_id: str, *, need: str = "viewer") -> SavedRecipe:
    """A saved recipe of the project's workspace. Raises NotFound, and Forbidden below the role."""
    project = projects.get(session, actor, project_id, need=need)
    saved = session.get(SavedRecipe, saved_id)
    if saved is None or saved.workspace_id != project.workspace_id:
        raise NotFound
    return saved


def keep(session: Session, actor: Actor, project_id: str, *, name: str) -> SavedRecipe:
    """Save what stands on the recipe page. Raises Invalid for a bad or taken name, Conflict without a recipe."""
    project = projects.get(session, actor, project_id, need="editor")
    name = _free_name(session, project, name)
    page = service.page(session, actor, project_id)
    if page.composed is None or page.chosen is None:
        raise Conflict("Freeze a dataset version first; then there is a recipe to save.")
    if len(listing(session, actor, project_id)) >= MOST:
        raise Conflict(f"A workspace keeps at most {MOST} recipes. Delete one that nobody uses, then save again.")
    recipe = page.composed.recipe
    saved = SavedRecipe(
        workspace_id=project.workspace_id,
        project_id=project.id,
        name=name,
        recipe=recipe.model_dump(mode="json"),
        base=page.draft.choices.get("base") or {"source": recipe.base_source},
        base_name=page.chosen.base.name if page.chosen.base else "",
        created_by=actor.user_id,
    )
    session.add(saved)
    session.flush()
    return saved


def use(session: Session, actor: Actor, project_id: str, saved_id: str) -> str:
    """Make the project's recipe page show a saved recipe. Returns what could not be taken over, in a sentence.

    Raises Conflict without a frozen version, Invalid where its values do not fit this base or machine.
    """
    saved = get(session, actor, project_id, saved_id, need="editor")
    base, left_out = dict(saved.base), ""
    source = base.get("source")
    if source == "model" and saved.project_id != project_id:
        left_out = _("It goes on from the model “%(name)s” of another project. The base of this page stays.")
    elif source in ("folder", "hub"):
        entry = session.get(BaseModelEntry, base.get("entry_id", ""))
        if entry is None or entry.workspace_id != saved.workspace_id or entry.state != "succeeded":
            left_out = _("Its base “%(name)s” is no longer here. The base of this page stays.")
    recipe = RecipeSpec.model_validate(saved.recipe)
    service.adopt(session, actor, project_id, recipe, base=None if left_out else base)
    return left_out % {"name": saved.base_name} if left_out else ""


def rename(session: Session, actor: Actor, project_id: str, saved_id: str, *, name: str) -> SavedRecipe:
    """Give a saved recipe another name. Raises Invalid for one that is empty or taken."""
    saved = get(session, actor, project_id, saved_id, need="editor")
    saved.name = _free_name(session, projects.get(session, actor, project_id), name, but=saved.id)
    session.flush()
    return saved


def delete(session: Session, actor: Actor, project_id: str, saved_id: str) -> SavedRecipe:
    """Take a saved recipe from the list. Runs and pages that used it keep their values."""
    saved = get(session, actor, project_id, saved_id, need="editor")
    saved.deleted_at = utcnow()
    session.flush()
    return saved


def restore(session: Session, actor: Actor, project_id: str, saved_id: str) -> SavedRecipe:
    """Undo a deletion. Raises Invalid when its name was given to another one meanwhile."""
    saved = get(session, actor, project_id, saved_id, need="editor")
    _free_name(session, projects.get(session, actor, project_id), saved.name, but=saved.id)
    saved.deleted_at = None
    session.flush()
    return saved


def _free_name(session: Session, project: Project, text: str, but: str = "") -> str:
    name = " ".join(text.split())[:100]
    if not name:
        raise Invalid(fields={"name": "Give the recipe a name by which you will know it again."})
    query = select(SavedRecipe.id).where(SavedRecipe.workspace_id == project.workspace_id, SavedRecipe.id != but)
    query = query.where(SavedRecipe.deleted_at.is_(None), func.lower(SavedRecipe.name) == name.lower())
    if session.scalar(query.limit(1)):
        raise Invalid(fields={"name": f"There is already a recipe “{name}” here. Choose another name."})
    return name
