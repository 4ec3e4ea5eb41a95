"""The recipe of a project: what is chosen, what the page shows, and the frozen values that a run starts with."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import Method, RecipeSpec
from app.core.errors import Conflict, Invalid, NotFound
from app.datasets.models import DatasetVersion
from app.projects import service as projects
from app.projects.models import Project
from app.recipes import bases, charts, drafts, fields, files, new_model, probes, room, several
from app.recipes.base_facts import BaseFacts
from app.recipes.bases import BaseModel
from app.recipes.compose import Composed, Version
from app.recipes.machine import Machine, this_machine
from app.recipes.models import BaseModelEntry, Probe, RecipeDraft
from app.recipes.presets import PRESETS


@dataclass(frozen=True)
class RecipePage:
    """Everything that the recipe page shows. `chosen` is None until a version is frozen."""

    project: Project
    draft: RecipeDraft
    versions: list[DatasetVersion]
    machine: Machine
    starter: BaseModel | None
    entries: list[BaseModelEntry]
    chosen: drafts.Chosen | None = None
    presets: dict[str, Composed] = field(default_factory=dict)
    composed: Composed | None = None
    schedule: dict[str, Any] = field(default_factory=dict)
    instruction: str = ""
    probe: Probe | None = None
    rates: Probe | None = None
    needs: dict[str, int] = field(default_factory=dict)
    ways: list[room.Way] = field(default_factory=list)
    refusal: str = ""


@dataclass(frozen=True)
class Ready:
    """What `runs.service.start` is given."""

    recipe: RecipeSpec
    version_id: str
    base_model_id: str | None
    parent_model_id: str | None
    estimate: dict[str, Any]
    name: str


def page(session: Session, actor: Actor, project_id: str) -> RecipePage:
    """The recipe page of a project."""
    project = projects.get(session, actor, project_id)
    draft = drafts.draft_of(session, project)
    versions = drafts.versions_of(session, project)
    entries = bases.entries(session, project.workspace_id)
    shown = RecipePage(project, draft, versions, this_machine(), bases.starter(), entries)
    chosen = drafts.chosen_of(session, project, draft, versions)
    if chosen is None:
        return shown
    built: dict[str, Composed] = {}
    for preset in PRESETS:
        try:
            built[preset] = drafts.composed_of(session, project, chosen, preset)
        except Invalid:
            if preset == chosen.preset:
                raise  # else it only does not go with what the person changed
    keys = drafts.probe_keys(session, project, chosen, built)
    built, made = drafts.by_probes(session, project, keys, built)
    composed = built[chosen.preset]
    return RecipePage(
        project,
        draft,
        versions,
        this_machine(),
        shown.starter,
        entries,
        chosen=chosen,
        presets=built,
        composed=composed,
        schedule=charts.schedule_path(composed.recipe, composed.estimate.steps),
        instruction=drafts.instruction_of(session, project) if composed.recipe.use_instruction else "",
        probe=made.get(chosen.preset),
        rates=probes.found(session, project.id, "rates", [keys[chosen.preset]]).get(keys[chosen.preset]),
        needs=_needs(shown, chosen.version),
        ways=room.ways(composed, chosen, shown.machine),
        refusal=room.refusal(composed, shown.machine),
    )


def _needs(shown: RecipePage, version: Version) -> dict[str, int]:
    """The memory that each base of the picker would take, in bytes, by the value of its card."""
    bases_ = {"starter": shown.starter.facts} if shown.starter else {}
    for entry in shown.entries:
        if entry.state == "succeeded" and "facts" in entry.details:
            bases_[f"{entry.source}:{entry.id}"] = BaseFacts.model_validate(entry.details["facts"])
    return {value: room.need_of(facts, version, shown.machine) for value, facts in bases_.items()}


def try_out(session: Session, actor: Actor, project_id: str, kind: probes.Kind) -> Probe:
    """Ask for a probe of the draft on this machine. Raises Conflict or Invalid with what is missing."""
    project = projects.get(session, actor, project_id, need="editor")
    chosen = drafts.chosen_of(session, project, drafts.draft_of(session, project), drafts.versions_of(session, project))
    if chosen is None:
        raise Conflict("Freeze a dataset version first: a probe needs the rows that will be learned from.")
    recipe = drafts.composed_of(session, project, chosen, chosen.preset).recipe
    if kind == "cost" and recipe.replicas > 1:
        raise Conflict("Only a run on one device can be measured before it starts. Its time is told by formula.")
    return probes.ask(
        session,
        project_id=project.id,
        kind=kind,
        recipe=recipe,
        version_id=chosen.version.id,
        base=chosen.base.files if chosen.base else None,
        instruction=drafts.instruction_of(session, project) if recipe.use_instruction else "",
    )


def use_rate(session: Session, actor: Actor, project_id: str, probe_id: str) -> RecipeDraft:
    """Take over the learning rate that a range test proposes; Muon's second rate keeps its ratio."""
    project = projects.get(session, actor, project_id, need="editor")
    draft = drafts.stored(session, project)
    probe = session.get(Probe, probe_id)
    if probe is None or probe.project_id != project.id or probe.kind != "rates":
        raise NotFound
    if (found := probes.compared(probe)) is None:
        raise Conflict("This range test has no result.")
    own = {"learning_rate": found.proposed}
    if second := probe.order["recipe"].get("adamw_learning_rate"):
        own["adamw_learning_rate"] = second * found.proposed / probe.order["recipe"]["learning_rate"]
    draft.choices = {**draft.choices, "overrides": {**draft.choices.get("overrides", {}), **own}}
    _own(draft, own)
    session.flush()
    _drop_idle_overrides(session, actor, project, draft)
    return draft


def save(
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    preset: str | None = None,
    method: str | None = None,
    version_id: str | None = None,
    name: str | None = None,
    values: dict[str, str] | None = None,
    reset: bool = False,
    shape: int | None = None,
    shown_preset: str = "",
    shown_paced: dict[str, str] | None = None,
) -> RecipeDraft:
    """Keep what the page's form says. `values` are all fields of the drawer as text; flags that are off are absent.

    What differs from the values that were shown (for `shown_preset`, with `shown_paced` for its steps: a quick second
    click sends the page of before) becomes a change of the person's own and survives a change of preset.
    Raises Invalid with the fields that do not fit; then nothing is kept.
    """
    project = projects.get(session, actor, project_id, need="editor")
    draft = drafts.stored(session, project)
    before = page(session, actor, project_id)
    choices = {key: value for key, value in draft.choices.items() if not (reset and key == "adopted")}
    overrides: dict[str, Any] = {} if reset else dict(choices.get("overrides", {}))
    wrong: dict[str, str] = {}
    changed: dict[str, Any] = {}
    if values is not None and not reset and before.composed is not None and before.chosen is not None:
        composed = before.presets.get(shown_preset, before.composed)
        changed, wrong = _changed(composed, before.chosen.method, values, shown_paced or {})
        overrides |= changed
    if shape is not None:
        try:
            changed |= new_model.shape_values(shape)
        except IndexError:
            raise Invalid(fields={"shape": "Choose a size of the slider."}) from None
        overrides |= changed
        overrides.pop("scratch.kv_heads", None)
        overrides.pop("max_length_tokens", None)
    if preset is not None:
        if preset not in PRESETS:
            raise Invalid(fields={"preset": "Choose quick, balanced or thorough."})
        draft.preset = preset
    if version_id is not None:
        if version_id not in {version.id for version in drafts.versions_of(session, project)}:
            raise Invalid(fields={"version_id": "Choose a frozen version of this project."})
        draft.version_id = version_id
    if method is not None and method in drafts.TUNING:
        choices["method"] = method
    if name is not None:
        choices["name"] = name.strip()[:100]
    draft.choices = {**choices, "overrides": overrides}
    _own(draft, changed)
    session.flush()
    # Whoever typed three wrong values hears of all three.
    try:
        _drop_idle_overrides(session, actor, project, draft)
    except Invalid as error:
        wrong = error.fields | wrong
    if wrong:
        raise Invalid(fields=wrong)
    return draft


def choose_base(
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    source: str,
    entry_id: str | None = None,
    model: dict[str, Any] | None = None,
) -> RecipeDraft:
    """Set the base model. Changes that belonged to the former base are dropped.

    `model` describes a model of this project (keys ref, name, facts, tokenizer_file), given by the runs slice.
    """
    project = projects.get(session, actor, project_id, need="editor")
    draft = drafts.stored(session, project)
    base: dict[str, Any] = {"source": source}
    if source in ("folder", "hub"):
        entry = bases.get_entry(session, project.workspace_id, entry_id or "")
        if entry.state != "succeeded":
            raise Conflict(f"{entry.name} is not ready yet: wait until it is downloaded and checked.")
        base["entry_id"] = entry.id
    elif source == "model":
        if model is None:
            raise Invalid(fields={"base": "Choose a finished model of this project."})
        base |= model
    elif source not in ("starter", "scratch"):
        raise Invalid(fields={"base": "Choose a base model of the list."})
    choices = {key: value for key, value in draft.choices.items() if key not in ("method", "overrides", "adopted")}
    draft.choices = {**choices, "base": base}
    session.flush()
    return draft


def import_recipe(session: Session, actor: Actor, project_id: str, text: str) -> RecipeDraft:
    """Take over the values of a recipe file; the base model of the page stays unless the file is from scratch."""
    return adopt(session, actor, project_id, files.from_yaml(text))


def adopt(
    session: Session,
    actor: Actor,
    project_id: str,
    recipe: RecipeSpec,
    *,
    base: dict[str, Any] | None = None,
    version_id: str | None = None,
) -> RecipeDraft:
    """Make the page show these values. `base` as the draft keeps it; None: the page’s own stays.

    Raises Conflict without a frozen version, or without a base that the recipe could tune.
    """
    project = projects.get(session, actor, project_id, need="editor")
    draft = drafts.stored(session, project)
    versions = drafts.versions_of(session, project)
    if version_id in {version.id for version in versions}:
        draft.version_id = version_id
    chosen = drafts.chosen_of(session, project, draft, versions)
    if chosen is None:
        raise Conflict("Freeze a dataset version first; then the recipe has something to fit.")
    is_scratch = recipe.method == "scratch"
    choices = dict(draft.choices)
    if base is not None:
        choices["base"] = base
    elif is_scratch != (chosen.base is None):
        if not is_scratch and bases.starter() is None:
            raise Conflict("This recipe tunes a base model. Choose one on the page, then import it again.")
        choices["base"] = {"source": "scratch" if is_scratch else "starter"}
    if not is_scratch:
        choices["method"] = recipe.method
    values = recipe.model_dump(mode="json")
    overrides = {f.name: fields.get(values, f.name) for f in fields.FIELDS if f.is_for(recipe.method)}
    if recipe.max_hours is not None:
        del overrides["max_steps"]  # counted anew for this machine and these rows
    overrides = several.without_strangers(overrides, this_machine())
    adopted = {"preset": chosen.preset, "names": sorted(overrides)}
    draft.choices = {**choices, "overrides": overrides, "adopted": adopted}
    session.flush()
    _drop_idle_overrides(session, actor, project, draft)
    return draft


def ready(session: Session, actor: Actor, project_id: str) -> Ready:
    """The draft as a run starts with it. Raises Conflict or Invalid with what is missing."""
    project = projects.get(session, actor, project_id, need="editor")
    return _ready(session, project, drafts.draft_of(session, project), drafts.versions_of(session, project))


def forget_name(session: Session, actor: Actor, project_id: str) -> None:
    """The name was given to a run that has started: the next one is not called the same by accident."""
    project = projects.get(session, actor, project_id, need="editor")
    draft = drafts.stored(session, project)
    draft.choices = {key: value for key, value in draft.choices.items() if key != "name"}
    session.flush()


def proposed(
    session: Session,
    actor: Actor,
    version: DatasetVersion,
    *,
    base: dict[str, Any],
    overrides: dict[str, Any] | None = None,
) -> Ready:
    """What is proposed for a version and a base, with a few values of one's own, whatever stands on the recipe page,
    which stays as it is. Raises Invalid for values that do not fit."""
    project = projects.get(session, actor, version.project_id, need="editor")
    draft = RecipeDraft(
        project_id=project.id,
        version_id=version.id,
        preset="balanced",
        choices={"base": base, "overrides": overrides or {}},
    )
    return _ready(session, project, draft, [version])


def _ready(session: Session, project: Project, draft: RecipeDraft, versions: list[DatasetVersion]) -> Ready:
    chosen = drafts.chosen_of(session, project, draft, versions)
    if chosen is None:
        raise Conflict("Freeze a dataset version first: training needs rows that no longer change.")
    alone: dict[str, Composed] = {chosen.preset: drafts.composed_of(session, project, chosen, chosen.preset)}
    built, _ = drafts.by_probes(session, project, drafts.probe_keys(session, project, chosen, alone), alone)
    composed = built[chosen.preset]
    if sentence := room.refusal(composed, this_machine()):
        raise Conflict(sentence)
    base_id = chosen.base.entry_id if chosen.base else None
    if chosen.base is not None and chosen.base.source == "starter":
        base_id = bases.starter_entry(session, project.workspace_id).id
    return Ready(
        recipe=composed.recipe,
        version_id=chosen.version.id,
        base_model_id=base_id,
        parent_model_id=chosen.base.ref if chosen.base and chosen.base.source == "model" else None,
        estimate=composed.estimate.model_dump(mode="json"),
        name=str(draft.choices.get("name", "")),
    )


def _changed(
    composed: Composed, method: Method, values: dict[str, str], shown_paced: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields whose text differs from what was shown, parsed; and a sentence for each that is no value at all."""
    shown = composed.values
    changed: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for known in fields.FIELDS:
        if not known.is_for(method) or (known.kind != "flag" and known.name not in values):
            continue
        text = values.get(known.name, "")
        try:
            value = fields.parse(known, text)
        except ValueError as error:
            wrong[known.name] = str(error)
            continue
        if known.kind == "flag":
            is_same = value == fields.get(shown, known.name)
        else:
            texts = (fields.shown(known, fields.get(shown, known.name)), shown_paced.get(known.name))
            is_same = text.strip().replace("\r\n", "\n") in texts
        if not is_same:
            changed[known.name] = value
    return changed, wrong


def _own(draft: RecipeDraft, changed: dict[str, Any]) -> None:
    """What was changed by hand is the person's, also where an adopted recipe had set it before."""
    adopted = draft.choices.get("adopted")
    if adopted:
        names = [name for name in adopted["names"] if name not in changed]
        draft.choices = {**draft.choices, "adopted": {**adopted, "names": names}}


def _drop_idle_overrides(session: Session, actor: Actor, project: Project, draft: RecipeDraft) -> None:
    """Forget changes that equal the proposal, so that the page marks only real ones. Raises Invalid for a bad set."""
    chosen = drafts.chosen_of(session, project, draft, drafts.versions_of(session, project))
    if chosen is None:
        return
    composed = drafts.composed_of(session, project, chosen, chosen.preset)
    kept = {}
    for name, value in chosen.overrides.items():
        sleeps = name in chosen.adopted and chosen.preset != chosen.adopted_for
        if fields.BY_NAME[name].is_for(chosen.method) and (sleeps or value != composed.recommended(name)):
            kept[name] = value
    draft.choices = {**draft.choices, "overrides": kept}
    session.flush()
