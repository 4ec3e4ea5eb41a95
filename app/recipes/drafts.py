"""What stands on a project's recipe page: the draft, completed with what we would choose, and composed into recipes."""

from dataclasses import dataclass, field, replace
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.probe import Probed
from app.contracts.recipe import Method, Overlay, RecipeSpec
from app.datasets.models import DatasetVersion
from app.projects.models import Objective, Project
from app.recipes import bases, calibration, compose, fields, hours, probes
from app.recipes.base_facts import BaseFacts
from app.recipes.bases import BaseModel
from app.recipes.compose import Composed, Version
from app.recipes.estimate import Estimate, estimate
from app.recipes.machine import this_machine
from app.recipes.models import BaseModelEntry, Probe, RecipeDraft
from app.recipes.presets import PACED, PRESETS, Preset, Proposal

TUNING: tuple[Method, ...] = ("full", "lora", "last_layers")


@dataclass(frozen=True)
class Chosen:
    """The draft, completed with what we would choose.

    `adopted` are overrides that were taken over with a whole recipe, while the preset was `adopted_for`: what presets
    decide of them counts for that one only.
    """

    version: Version
    base: BaseModel | None
    method: Method
    preset: Preset
    overrides: dict[str, Any]
    method_reason: str = ""
    needs: dict[str, int] = field(default_factory=dict)
    recommended_method: str = ""
    adopted_for: str = ""
    adopted: frozenset[str] = frozenset()


def draft_of(session: Session, project: Project) -> RecipeDraft:
    """The project's draft; an unsaved one with our choices where there is none yet."""
    known = session.get(RecipeDraft, project.id)
    return known or RecipeDraft(project_id=project.id, preset="balanced", choices={}, version_id=None)


def stored(session: Session, project: Project) -> RecipeDraft:
    """The project's draft, kept in the database from now on."""
    draft = draft_of(session, project)
    session.add(draft)
    session.flush()
    return draft


def instruction_of(session: Session, project: Project) -> str:
    """The objective as the model is told it before each conversation; empty without one."""
    objective = session.get(Objective, project.id)
    return objective.system_prompt if objective else ""


def versions_of(session: Session, project: Project) -> list[DatasetVersion]:
    """Frozen versions with rows to learn from, newest first."""
    query = select(DatasetVersion).where(DatasetVersion.project_id == project.id, DatasetVersion.state == "succeeded")
    return list(session.scalars(query.where(DatasetVersion.train_rows > 0).order_by(DatasetVersion.number.desc())))


def chosen_of(session: Session, project: Project, draft: RecipeDraft, versions: list[DatasetVersion]) -> Chosen | None:
    """What the draft means for these versions; None until one is frozen."""
    if not versions:
        return None
    row = next((version for version in versions if version.id == draft.version_id), versions[0])
    objective = session.get(Objective, project.id)
    instruction = len(objective.system_prompt) if objective else 0
    version = Version(row.id, row.number, row.kind, row.train_rows, row.validation_rows, row.test_rows, instruction)
    base = _base(session, project, draft, version)
    preset = cast(Preset, draft.preset if draft.preset in PRESETS else "balanced")
    overrides = dict(draft.choices.get("overrides", {}))
    taken = draft.choices.get("adopted") or {}
    adopted = {"adopted_for": taken.get("preset", ""), "adopted": frozenset(taken.get("names", ()))}
    if base is None:
        return Chosen(version, None, "scratch", preset, overrides, **adopted)
    best, reason, needs = compose.fit_of(base, version, this_machine())
    asked = draft.choices.get("method")
    method = cast(Method, asked if asked in TUNING else best)
    return Chosen(version, base, method, preset, overrides, reason, needs, best, **adopted)


def _base(session: Session, project: Project, draft: RecipeDraft, version: Version) -> BaseModel | None:
    """The chosen base; by default the starter model for conversations and a new GPT for plain text."""
    asked = draft.choices.get("base") or {}
    source = asked.get("source") or ("starter" if version.kind == "chat" else "scratch")
    if source in ("folder", "hub"):
        entry = session.get(BaseModelEntry, asked.get("entry_id", ""))
        if (
            entry is not None
            and entry.workspace_id == project.workspace_id
            and entry.state == "succeeded"
            and entry.folder
        ):
            return bases.of_entry(entry)
        source = "starter"
    if source == "model":
        return BaseModel(
            source="model",
            ref=asked["ref"],
            name=asked["name"],
            facts=BaseFacts.model_validate(asked["facts"]),
            tokenizer_file=asked["tokenizer_file"],
            overlays=[Overlay.model_validate(one) for one in asked.get("overlays", [])],
        )
    return bases.starter() if source == "starter" else None


def composed_of(session: Session, project: Project, chosen: Chosen, preset: Preset) -> Composed:
    """The recipe of a preset with the person's own changes, and its estimate."""
    machine = this_machine()
    proposal = compose.propose(preset, chosen.method, chosen.base, chosen.version, machine)
    objective = session.get(Objective, project.id)
    prompts = [str(s.get("question", "")) for s in (objective.samples if objective else [])]
    size = chosen.base.facts.parameters if chosen.base else _scratch_size(proposal.values)
    return compose.compose(
        proposal,
        chosen.base,
        chosen.version,
        machine,
        overrides=_overrides_for(chosen, preset, proposal),
        sample_prompts=[prompt for prompt in prompts if prompt.strip()][:8],
        measured=calibration.measured(session, machine, size),
    )


def _overrides_for(chosen: Chosen, preset: Preset, proposal: Proposal) -> dict[str, Any]:
    """The person's changes that count for a preset: of an adopted recipe, another one decides what presets decide."""
    if not chosen.adopted or preset == chosen.adopted_for:
        return chosen.overrides
    theirs = compose.propose(
        cast(Preset, chosen.adopted_for), chosen.method, chosen.base, chosen.version, this_machine()
    )

    def is_decided(name: str) -> bool:
        mine, other = fields.get(proposal.values, name), fields.get(theirs.values, name)
        # The values of a new model belong together: half of one shape does not go with half of another.
        return name == "max_steps" or name in PACED or (mine is not None if chosen.base is None else mine != other)

    return {
        name: value for name, value in chosen.overrides.items() if name not in chosen.adopted or not is_decided(name)
    }


def _scratch_size(values: dict[str, Any]) -> int:
    shape = values["scratch"]
    return int(12 * shape["layers"] * shape["width"] ** 2 + shape["vocabulary_size"] * shape["width"])


def probe_keys(session: Session, project: Project, chosen: Chosen, built: dict[str, Composed]) -> dict[str, str]:
    """Under which key a probe of each preset's recipe is known."""
    instruction, base = instruction_of(session, project), chosen.base.files if chosen.base else None
    return {
        preset: probes.key_of(one.recipe, chosen.version.id, base, instruction if one.recipe.use_instruction else "")
        for preset, one in built.items()
    }


def by_probes(
    session: Session, project: Project, keys: dict[str, str], built: dict[str, Composed]
) -> tuple[dict[str, Composed], dict[str, Probe]]:
    """The recipes, each by its probe where there is one and shortened to its hours, and those probes."""
    made = probes.found(session, project.id, "cost", list(keys.values()))
    errors: list[float] = []
    limited = any(one.recipe.max_hours for one in built.values())
    known = calibration.Measured()
    if limited or any(probes.measured(probe) for probe in made.values()):
        size = next(iter(built.values())).facts.parameters
        known = calibration.measured(session, this_machine(), size)
        errors = known.probed_errors
    refined: dict[str, Composed] = {}
    for preset, one in built.items():
        probed = probes.measured(made.get(keys[preset]))

        def estimated(recipe: RecipeSpec, one: Composed = one, probed: Probed | None = probed) -> Estimate:
            plain = estimate(recipe, one.facts, one.material, this_machine(), measured=known)
            return probes.refined(replace(one, recipe=recipe, estimate=plain), probed, errors).estimate

        refined[preset] = hours.fitted(probes.refined(one, probed, errors), estimated)
    return refined, {preset: made[key] for preset, key in keys.items() if key in made}
