"""What people changed by hand in the working set: every change is kept with who and when, and can be undone.

The rows themselves stay as they are; pages lay the changes over them, and the next preparation applies them.
"""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import xxhash
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.models import User
from app.accounts.service import Actor
from app.core import storage
from app.core.db import utcnow
from app.core.errors import Conflict, Invalid, NotFound
from app.datasets.edits import DELETED, EXCLUDED, KEPT, EditLayer, RowEdit
from app.datasets.models import CleaningPlan, RowChange
from app.datasets.plan import PlannedEdits
from app.datasets.tables import part_of
from app.projects import service as projects

Kind = Literal["edit", "delete", "restore", "exclude", "include", "keep", "tag", "untag", "label"]
_FLAGS: dict[str, tuple[int, int]] = {
    "delete": (DELETED, 0), "restore": (0, DELETED), "exclude": (EXCLUDED, KEPT), "include": (0, EXCLUDED),
    "keep": (KEPT, EXCLUDED | DELETED),
}  # fmt: skip
TAG_CHARACTERS, LABEL_CHARACTERS = 40, 200
MOST_TEXT_CHANGES = 1_000_000
PER_PAGE = 50


def seen_hash(example: dict[str, Any]) -> str:
    """What a person saw of a row: its texts and label. Two people who saw the same have the same one."""
    turns = [[m["role"], m["content"], m["train"]] for m in example.get("messages") or []]
    body = [example.get("kind"), turns, example.get("text") or "", example.get("label") or ""]
    return xxhash.xxh3_128_hexdigest(orjson.dumps(body))


def overlaid(example: dict[str, Any], edit: RowEdit | None) -> dict[str, Any]:
    """The example as the edit leaves it. An edited text is that of the whole row, never of a part of it."""
    if edit is None:
        return example
    found = {**example, **({} if part_of(example.get("_rid") or 0) else edit.example or {})}
    if edit.label is not None:
        found["label"] = edit.label
    return found


def change_row(
    session: Session, actor: Actor, project_id: str, *, key: int, kind: Kind, value: dict[str, Any] | None = None,
    place: tuple[str, int] = ("", 0),
) -> RowChange:  # fmt: skip
    """Change one row. The caller has checked what the person saw. `place`: file id and record, for the history."""
    projects.get(session, actor, project_id, need="editor")
    plan = _locked_plan(session, project_id)
    change = RowChange(
        project_id=project_id, kind=kind, key=_signed(key), file_id=place[0], row=place[1], rows=1,
        value=_checked(kind, value or {}), created_by=actor.user_id,
    )  # fmt: skip
    return _added(session, plan, change)


def change_rows(
    session: Session, actor: Actor, project_id: str, *, keys: np.ndarray, kind: Kind,
    value: dict[str, Any] | None = None, question: dict[str, Any] | None = None,
) -> RowChange:  # fmt: skip
    """Change many rows at once: one entry in the history, their keys in a file beside it.

    Raises Invalid when no row is meant, or more than a million are to be tagged or labelled.
    """
    projects.get(session, actor, project_id, need="editor")
    if not len(keys):
        raise Invalid("No row is meant. Change the filter, or tick rows first.")
    if kind in ("tag", "untag", "label") and len(keys) > MOST_TEXT_CHANGES:
        raise Invalid(
            "At most a million rows can be tagged or labelled at once. Narrow the filter, then do it in parts."
        )
    plan = _locked_plan(session, project_id)
    change = RowChange(
        project_id=project_id, kind=kind, rows=len(keys), value=_checked(kind, value or {}), question=question or {},
        created_by=actor.user_id,
    )  # fmt: skip
    _added(session, plan, change)
    np.sort(np.unique(keys)).astype("<u8").tofile(_keys_path(plan.id, change.id))
    return change


def _checked(kind: Kind, value: dict[str, Any]) -> dict[str, Any]:
    if kind in ("tag", "untag"):
        tag = " ".join(str(value.get("tag", "")).split())
        if not tag or len(tag) > TAG_CHARACTERS:
            raise Invalid(fields={"tag": f"Write a tag of at most {TAG_CHARACTERS} characters."})
        return {"tag": tag}
    if kind == "label":
        label = str(value.get("label", "")).strip()
        if len(label) > LABEL_CHARACTERS:
            raise Invalid(fields={"label": f"A label has at most {LABEL_CHARACTERS} characters."})
        return {"label": label}
    return {"example": value["example"]} if kind == "edit" else {}


def _added(session: Session, plan: CleaningPlan, change: RowChange) -> RowChange:
    session.add(change)
    plan.edits_revision = (plan.edits_revision or 0) + 1
    session.flush()
    return change


def _locked_plan(session: Session, project_id: str) -> CleaningPlan:
    """The plan, locked where the database can, so that two changes of one row come one after the other."""
    query = select(CleaningPlan).where(CleaningPlan.project_id == project_id).with_for_update()
    plan = session.scalar(query)
    if plan is None:
        raise Conflict("There are no rows yet. Bring a file first.")
    return plan


def undo(session: Session, actor: Actor, project_id: str, change_id: int) -> RowChange:
    """Take a change back, whatever came after it. Raises Conflict when it was taken back already."""
    change = _of(session, actor, project_id, change_id)
    if change.undone_at is not None:
        raise Conflict("This change was taken back already.")
    change.undone_at, change.undone_by = utcnow(), actor.user_id
    _locked_plan(session, project_id).edits_revision += 1
    session.flush()
    return change


def redo(session: Session, actor: Actor, project_id: str, change_id: int) -> RowChange:
    """Put a change that was taken back into force again."""
    change = _of(session, actor, project_id, change_id)
    change.undone_at = change.undone_by = None
    _locked_plan(session, project_id).edits_revision += 1
    session.flush()
    return change


def _of(session: Session, actor: Actor, project_id: str, change_id: int) -> RowChange:
    projects.get(session, actor, project_id, need="editor")
    change = session.get(RowChange, change_id)
    if change is None or change.project_id != project_id:
        raise NotFound
    return change


def history(session: Session, actor: Actor, project_id: str, page: int = 1) -> list[RowChange]:
    """Changes, newest first; one more than a page when there are more."""
    projects.get(session, actor, project_id)
    query = select(RowChange).where(RowChange.project_id == project_id).order_by(RowChange.id.desc())
    return list(session.scalars(query.offset((page - 1) * PER_PAGE).limit(PER_PAGE + 1)))


def names_of(session: Session, changes: list[RowChange]) -> dict[str, str]:
    """Who made them: user id to name."""
    people = select(User.id, User.name).where(User.id.in_({c.created_by for c in changes if c.created_by}))
    return {user_id: name for user_id, name in session.execute(people).all()}


def of_row(session: Session, project_id: str, key: int) -> list[RowChange]:
    """The changes of one row alone, newest first."""
    query = select(RowChange).where(RowChange.project_id == project_id, RowChange.key == _signed(key))
    return list(session.scalars(query.order_by(RowChange.id.desc()).limit(20)))


def overlay(session: Session, plan: CleaningPlan | None, keys: list[int]) -> dict[int, RowEdit]:
    """The edits in force of some rows (a page of them)."""
    if plan is None or not plan.edits_revision or not keys:
        return {}
    wanted = np.array(sorted(keys), np.uint64)
    alive = select(RowChange).where(RowChange.project_id == plan.project_id, RowChange.undone_at.is_(None))
    singles = session.scalars(alive.where(RowChange.key.in_([_signed(key) for key in keys])))
    many = session.scalars(alive.where(RowChange.key.is_(None)))
    layer = _folded(plan.id, sorted([*singles, *many], key=lambda change: change.id), wanted)
    return {key: edit for key in keys if (edit := layer.of(key)) is not None}


def layer_path(session: Session, plan: CleaningPlan | None) -> Path | None:
    """A file with all edits in force (`edits.EditLayer`), made once for each state of the edits; None without any."""
    if plan is None or not plan.edits_revision:
        return None
    folder = edits_dir(plan.id)
    path = folder / f"layer-{plan.edits_revision}.parquet"
    if not path.exists():
        alive = select(RowChange).where(RowChange.project_id == plan.project_id, RowChange.undone_at.is_(None))
        changes = list(session.scalars(alive.order_by(RowChange.id)))
        keys = [np.array([_unsigned(c.key) for c in changes if c.key is not None], np.uint64)]
        keys += [_keys_of(plan.id, change.id) for change in changes if change.key is None]
        layer = _folded(plan.id, changes, np.unique(np.concatenate(keys)))
        temporary = path.with_suffix(f".{id(layer)}.tmp")
        layer.save(temporary)
        temporary.replace(path)
        for old in sorted(folder.glob("layer-*.parquet"), key=lambda p: p.stat().st_mtime)[:-3]:
            old.unlink(missing_ok=True)
    return path


def edits_dir(plan_id: str) -> Path:
    """Where the keys of changes of many rows, and the layers, lie."""
    path = storage.working_dir(plan_id) / "edits"
    path.mkdir(exist_ok=True)
    return path


def _keys_path(plan_id: str, change_id: int) -> Path:
    return edits_dir(plan_id) / f"keys-{change_id}.u64"


def _keys_of(plan_id: str, change_id: int) -> np.ndarray:
    path = _keys_path(plan_id, change_id)
    return np.memmap(path, "<u8", mode="r") if path.exists() and path.stat().st_size else np.zeros(0, np.uint64)


def _folded(plan_id: str, changes: list[RowChange], keys: np.ndarray) -> EditLayer:
    """The changes one after the other, for those of the sorted `keys` that they touch."""
    flags = np.zeros(len(keys), np.uint8)
    examples: dict[int, bytes] = {}
    labels: dict[int, str] = {}
    tags: dict[int, tuple[str, ...]] = {}
    for change in changes:
        mine = np.array([_unsigned(change.key)], np.uint64) if change.key is not None else _keys_of(plan_id, change.id)
        at = _common(keys, mine)
        if change.kind in _FLAGS:
            on, off = _FLAGS[change.kind]
            flags[at] = (flags[at] | on) & (255 - off)
            continue
        for key in keys[at].tolist():
            if change.kind == "edit":
                examples[key] = orjson.dumps(change.value["example"])
            elif change.kind == "label":
                labels[key] = change.value["label"]
            else:
                others = tuple(tag for tag in tags.get(key, ()) if tag != change.value["tag"])
                tags[key] = (*others, change.value["tag"]) if change.kind == "tag" else others
    is_used = flags > 0
    touched = np.array(sorted({*examples, *labels, *(key for key, found in tags.items() if found)}), np.uint64)
    if len(touched):
        is_used[np.searchsorted(keys, touched)] = True
    return EditLayer(keys[is_used], flags[is_used], examples, labels, {k: v for k, v in tags.items() if v})


def _common(keys: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Where `mine` (sorted) lie in `keys` (sorted)."""
    if not len(keys) or not len(mine):
        return np.zeros(0, np.int64)
    if len(mine) < len(keys):
        at = np.minimum(np.searchsorted(keys, mine), len(keys) - 1)
        return at[keys[at] == mine]
    at = np.minimum(np.searchsorted(mine, keys), len(mine) - 1)
    return np.flatnonzero(mine[at] == keys)


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key


def _unsigned(key: int | None) -> int:
    return (key or 0) % 2**64


def planned(session: Session, plan: CleaningPlan | None) -> PlannedEdits | None:
    """The edits in force as a plan names them: a file of their own that nothing changes; None without any."""
    path = layer_path(session, plan)
    if path is None or plan is None or not len(EditLayer.load(path)):
        return None
    digest = storage.file_sha256(path)
    fixed = edits_dir(plan.id) / f"frozen-{digest[:32]}.parquet"
    if not fixed.exists():
        os.link(path, fixed)
    return PlannedEdits(path=str(fixed), sha256=digest)


def is_pending(plan: CleaningPlan | None) -> bool:
    """Whether the prepared rows do not hold the newest edits yet."""
    return plan is not None and (plan.edits_revision or 0) != (plan.prepared_edits or 0)
