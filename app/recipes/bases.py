"""Base models: the starter, a folder, the hub, or a model trained earlier. Where each lies and what it is."""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.recipe import BaseSource, ModelFiles, Overlay
from app.core import storage
from app.core.config import ROOT
from app.core.db import new_id
from app.core.errors import Conflict, Invalid, NotFound, Unavailable
from app.core.queue import ring
from app.core.work import Lease
from app.recipes import base_facts, hub, model_card, vetting
from app.recipes.base_facts import BaseFacts
from app.recipes.models import BaseModelEntry
from app.text.check import check_template
from app.text.template import TemplateFault, brought_template
from app.text.tokenizer_check import TokenizerFault, check_tokenizer

TASK = "recipes.bring"
STARTER = ROOT / "starter" / "model"
_HUB_REF = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[\w./-]{1,64}")


@dataclass(frozen=True)
class BaseModel:
    """A base that can be trained on. `entry_id` is its row in the catalogue, where it has one."""

    source: BaseSource
    ref: str
    name: str
    facts: BaseFacts
    licence: str = ""
    revision: str = ""
    entry_id: str | None = None
    tokenizer_file: Path | None = None
    notes: dict[str, str] = field(default_factory=dict)
    overlays: list[Overlay] = field(default_factory=list)

    @property
    def files(self) -> ModelFiles | None:
        """Where its weights are; None where the folder is not known."""
        if self.tokenizer_file is None:
            return None
        return ModelFiles(base_dir=str(Path(self.tokenizer_file).parent), overlays=self.overlays)


@dataclass(frozen=True)
class HubAnswer:
    """What the hub said about `ref` at the asked `revision`."""

    ref: str
    revision: str
    found: hub.Found


def starter() -> BaseModel | None:
    """The model that ships with the product; None where its weights are not installed."""
    if not (STARTER / "model.safetensors").is_file():
        return None
    said = model_card.languages(STARTER.parent / "MODEL_CARD.md")
    facts = base_facts.from_folder(STARTER).model_copy(update={"languages": said})
    return BaseModel(
        source="starter",
        ref="starter",
        name="Starter model",
        facts=facts,
        licence="Apache-2.0",
        tokenizer_file=STARTER / "tokenizer.json",
    )


def entries(session: Session, workspace_id: str) -> list[BaseModelEntry]:
    """The workspace's base models from folders and the hub, newest first, whatever their state."""
    query = select(BaseModelEntry).where(
        BaseModelEntry.workspace_id == workspace_id, BaseModelEntry.source != "starter"
    )
    return list(session.scalars(query.order_by(BaseModelEntry.created_at.desc())))


def get_entry(session: Session, workspace_id: str, entry_id: str) -> BaseModelEntry:
    """An entry of this workspace. Raises NotFound."""
    entry = session.get(BaseModelEntry, entry_id)
    if entry is None or entry.workspace_id != workspace_id:
        raise NotFound
    return entry


def of_entry(entry: BaseModelEntry) -> BaseModel:
    """The base behind a finished entry."""
    folder = Path(entry.folder)
    source: BaseSource = "hub" if entry.source == "hub" else "starter" if entry.source == "starter" else "folder"
    return BaseModel(
        source=source,
        ref=f"{entry.ref}@{entry.revision}" if entry.source == "hub" else entry.ref,
        name=entry.name,
        facts=BaseFacts.model_validate(entry.details["facts"]),
        licence=entry.licence,
        revision=entry.revision,
        entry_id=entry.id,
        tokenizer_file=folder / "tokenizer.json",
    )


def starter_entry(session: Session, workspace_id: str) -> BaseModelEntry:
    """The catalogue row of the starter model, made or brought up to date. Raises Unavailable where it is missing."""
    base = starter()
    if base is None:
        raise Unavailable("The starter model is not installed. Build it with the command in starter/README.md.")
    digest = storage.file_sha256(STARTER / "model.safetensors")
    query = select(BaseModelEntry).where(
        BaseModelEntry.workspace_id == workspace_id, BaseModelEntry.source == "starter"
    )
    entry = session.scalar(query.where(BaseModelEntry.revision == digest))
    if entry is None:
        entry = BaseModelEntry(
            workspace_id=workspace_id, source="starter", ref="starter", revision=digest, name=base.name
        )
        session.add(entry)
    _describe(entry, STARTER, base.facts, base.licence, {"model.safetensors": digest})
    entry.state = "succeeded"
    session.flush()
    return entry


def bring_folder(session: Session, workspace_id: str, text: str, name: str = "") -> BaseModelEntry:
    """Queue the check and copy of a local folder. Raises Invalid at once for a place that may not be read."""
    folder = vetting.allowed_folder(text)
    vetting.vet_folder(folder)
    return _queue(session, workspace_id, "folder", str(folder), "", name.strip()[:200] or folder.name)


def look_up(ref: str, revision: str = "") -> HubAnswer:
    """Ask the hub about a model. Takes seconds when the hub is slow: call it outside of every transaction.

    Raises Invalid for a name that cannot be or a model that cannot be used, Unavailable without a connection.
    """
    ref, revision = ref.strip().removeprefix("https://huggingface.co/").strip("/"), revision.strip()
    if "@" in ref and not revision:
        ref, revision = ref.split("@", 1)
    if not _HUB_REF.fullmatch(ref):
        raise Invalid(fields={"ref": "Write the model as owner/name, for example HuggingFaceTB/SmolLM2-135M."})
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise Invalid(fields={"revision": "A revision is a branch, a tag or a commit, for example main."})
    return HubAnswer(ref, revision or "main", hub.look_up(ref, revision or "main"))


def bring_from_hub(session: Session, workspace_id: str, answer: HubAnswer) -> BaseModelEntry:
    """Keep what the hub answered (licence, size, pinned commit) for a person to confirm."""
    ref, found = answer.ref, answer.found
    known = _known(session, workspace_id, "hub", ref, found.commit)
    if known is not None and known.state in ("succeeded", "queued", "running"):
        return known
    entry = known or BaseModelEntry(workspace_id=workspace_id, source="hub", ref=ref, revision=found.commit, name=ref)
    entry.state, entry.error, entry.licence, entry.size_bytes = "found", "", found.licence, found.size_bytes
    entry.details = {"hub_files": [list(item) for item in found.files], "asked_revision": answer.revision}
    session.add(entry)
    session.flush()
    return entry


def confirm(session: Session, entry: BaseModelEntry) -> None:
    """Start (or start again) the download and check of an entry. Raises Conflict while it is already going on."""
    if entry.state in ("queued", "running"):
        raise Conflict("This model is already on its way.")
    if entry.state == "succeeded":
        return
    entry.state, entry.want, entry.error, entry.attempts, entry.done = "queued", "run", "", 0, 0
    session.flush()
    ring(session, TASK, entry.id)


def request_cancel(session: Session, entry: BaseModelEntry) -> None:
    """Stop a download; what has arrived is kept for the next try."""
    entry.want = "cancel"
    if entry.state in ("queued", "found"):
        entry.state = "cancelled"
    session.flush()


def _known(session: Session, workspace_id: str, source: str, ref: str, revision: str) -> BaseModelEntry | None:
    query = select(BaseModelEntry).where(BaseModelEntry.workspace_id == workspace_id, BaseModelEntry.source == source)
    return session.scalar(query.where(BaseModelEntry.ref == ref, BaseModelEntry.revision == revision))


def _queue(session: Session, workspace_id: str, source: str, ref: str, revision: str, name: str) -> BaseModelEntry:
    entry = _known(session, workspace_id, source, ref, revision)
    if entry is None:
        entry = BaseModelEntry(workspace_id=workspace_id, source=source, ref=ref, revision=revision, name=name)
        session.add(entry)
        session.flush()
        ring(session, TASK, entry.id)
    elif entry.state in ("failed", "cancelled"):
        confirm(session, entry)
    return entry


def bring(lease: Lease, entry: BaseModelEntry) -> None:
    """The work of an entry: fetch into a folder of our own, check every file, describe. Called by the worker."""
    target = storage.bases_dir() / entry.id
    arriving = storage.bases_dir() / f".arriving-{entry.id}"
    arriving.mkdir(mode=0o700, exist_ok=True)
    if entry.source == "hub":
        files = [(str(name), int(size), str(sha)) for name, size, sha in entry.details.get("hub_files", [])]
        hub.download(lease, entry.ref, entry.revision, files, arriving)
    else:
        _copy(lease, vetting.allowed_folder(entry.ref), arriving)
    lease.progress(0, 0, phase="checking")
    names = vetting.vet_folder(arriving)
    facts = base_facts.from_folder(arriving)
    _try_text(arriving)
    digests = {name: storage.file_sha256(arriving / name) for name in names}
    clean = storage.bases_dir() / f".clean-{entry.id}-{new_id()}"
    clean.mkdir(mode=0o700)
    for name in names:
        (arriving / name).rename(clean / name)
    storage.fsync_tree(clean)
    shutil.rmtree(target, ignore_errors=True)
    clean.rename(target)
    shutil.rmtree(arriving, ignore_errors=True)
    with lease.write() as session:
        row = session.get_one(BaseModelEntry, entry.id)
        _describe(row, target, facts, row.licence or model_card.licence(target / "README.md"), digests)


def _try_text(folder: Path) -> None:
    """Read and render a few sentences in a limited process, so that a tokenizer or a template that does not end is
    refused here and now."""
    try:
        check_tokenizer(folder / "tokenizer.json")
        source, special = brought_template(folder)
        if source:
            check_template(source, special)
    except (TemplateFault, TokenizerFault, UnicodeDecodeError) as fault:
        raise Invalid(f"This model cannot be used. {fault}") from fault


def _copy(lease: Lease, source: Path, target: Path) -> None:
    names = vetting.vet_folder(source)
    total = sum((source / name).stat().st_size for name in names)
    storage.require_space(total)
    done = 0
    for name in names:
        with (source / name).open("rb") as reader, (target / name).open("wb") as writer:
            while block := reader.read(8 * 2**20):
                writer.write(block)
                done += len(block)
                lease.progress(done, total)


def _describe(entry: BaseModelEntry, folder: Path, facts: BaseFacts, licence: str, digests: dict[str, str]) -> None:
    entry.folder, entry.licence, entry.size_bytes = str(folder), licence[:200], facts.size_bytes
    entry.parameters, entry.context_length, entry.architecture = (
        facts.parameters,
        facts.context_length,
        facts.architecture,
    )
    details: dict[str, Any] = {**(entry.details or {}), "facts": facts.model_dump(), "files": digests}
    entry.details = details
