"""Whose tokenizer the pages of rows borrow: the base model chosen in the recipe."""

from pathlib import Path

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.datasets.browsing.model_view import ReadingModel
from app.projects import service as projects
from app.projects.models import Project
from app.recipes import bases, drafts
from app.recipes.base_facts import BaseFacts
from app.recipes.models import BaseModelEntry


def chosen(session: Session, actor: Actor, project_id: str) -> ReadingModel | None:
    """The chosen base; the starter model where none is chosen or a new one will make its own tokenizer."""
    return of_project(session, projects.get(session, actor, project_id))


def of_project(session: Session, project: Project) -> ReadingModel | None:
    """The same, for a caller that passed the gate or works for the project."""
    draft = drafts.draft_of(session, project)
    asked = draft.choices.get("base") or {}
    limit = draft.choices.get("overrides", {}).get("max_length_tokens")
    entry = session.get(BaseModelEntry, asked.get("entry_id", ""))
    name, file, context, note = "", None, 0, ""
    if entry is not None and entry.workspace_id == project.workspace_id and entry.state == "succeeded":
        base = bases.of_entry(entry)
        name, file, context = base.name, base.tokenizer_file, base.facts.context_length
    elif asked.get("source") == "model":
        facts = BaseFacts.model_validate(asked["facts"])
        name, file, context = str(asked["name"]), Path(asked["tokenizer_file"]), facts.context_length
    if file is None or not file.is_file():
        starter = bases.starter()
        if starter is None or starter.tokenizer_file is None:
            return None
        if asked.get("source") == "scratch":
            note = "A new model makes its own tokens from your rows; these are the starter model's."
        name, file, context = starter.name, starter.tokenizer_file, starter.facts.context_length
    return ReadingModel(name, file, min(int(limit or context), context), note)
