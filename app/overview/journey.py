"""The journey in the rail: for each stage what is done, what works, what needs a look, and one short fact."""

from dataclasses import dataclass
from types import SimpleNamespace

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.numbers import number, percent
from app.core.translations import gettext as _
from app.core.translations import ngettext
from app.overview import facts as project_facts
from app.overview.facts import Facts
from app.projects import gallery, service
from app.projects.models import Project

SWITCHER_LIMIT = 12


@dataclass(frozen=True)
class Stage:
    """One node. state: todo, working (with its share), done, look. `why`: what it waits for; nothing is locked."""

    name: str
    label: str
    url: str
    state: str = "todo"
    fact: str = ""
    share: float = 0.0
    why: str = ""
    key: str = ""


def stages(project: Project, facts: Facts) -> list[Stage]:
    """The ten stages of one project, in order."""
    root = f"/projects/{project.id}"

    def stage(name: str, label: str, found: tuple[str, str, float, str], key: str = "", path: str = "") -> Stage:
        state, fact, share, why = found
        return Stage(name, label, f"{root}/{path or name}", state, fact, share, why, key)

    return [
        stage("objective", _("Objective"), _objective(facts)),
        stage("data", _("Data"), _data(facts), "d"),
        stage("clean", _("Clean"), _clean(facts)),
        stage("recipe", _("Recipe"), _recipe(facts)),
        stage("train", _("Train"), _train(facts), "t", "runs"),
        stage("evaluate", _("Evaluate"), _evaluate(facts), "e"),
        stage("chat", _("Chat"), _chat(facts), "c"),
        stage("refine", _("Refine"), _refine(facts)),
        stage("deploy", _("Deploy"), _deploy(facts)),
        stage("monitor", _("Monitor"), _monitor(facts), "m"),
    ]


def _objective(facts: Facts) -> tuple[str, str, float, str]:
    if not facts.task:
        return "todo", "", 0, _("Say in plain words what the model shall do.")
    return "done", ngettext("%(n)s sample", "%(n)s samples", facts.samples) if facts.samples else "", 1, ""


def _data(facts: Facts) -> tuple[str, str, float, str]:
    if facts.files_reading:
        return "working", _("reading"), 0.5, _("A file is being read.")
    if facts.files_failed or facts.files_unmapped:
        why = _("A file could not be read.") if facts.files_failed else _("A file waits for its columns to be named.")
        return "look", _("Look"), 0.5, why
    if not facts.files:
        return "todo", "", 0, _("Bring a first file.")
    return "done", ngettext("%(n)s row", "%(n)s rows", facts.rows), 1, ""


def _clean(facts: Facts) -> tuple[str, str, float, str]:
    if facts.version_working is not None:
        working = facts.version_working
        return "working", _("freezing"), working.done / working.total if working.total else 0.3, ""
    if facts.version is not None:
        left = facts.version.train_rows + facts.version.validation_rows + facts.version.test_rows
        return "done", _("%(n)s left", n=number(left)), 1, ""
    if facts.version_failed:
        return "look", _("Look"), 0.5, _("The version could not be frozen; nothing was changed.")
    return "todo", "", 0, _("Clean and split the rows, then freeze them into a version.") if facts.files else ""


def _recipe(facts: Facts) -> tuple[str, str, float, str]:
    names = {"quick": _("Quick"), "balanced": _("Balanced"), "thorough": _("Thorough")}
    if facts.preset or facts.runs:
        return "done", names.get(facts.preset, ""), 1, ""
    return (
        "todo",
        "",
        0,
        _("Choose a base model and how thoroughly it learns.") if facts.version else _("Freeze a version first."),
    )


def _train(facts: Facts) -> tuple[str, str, float, str]:
    run = facts.run
    if run is None:
        return "todo", "", 0, _("Start the first run from the recipe.")
    share = run.step / run.total_steps if run.total_steps else 0.0
    if run.state == "failed" or (run.coach or {}).get("kind") == "bad":
        return "look", _("Look"), share, run.sentence or _("The last run failed.")
    if project_facts.is_training(facts):
        if (run.coach or {}).get("kind") == "warn":
            return "look", _("Look"), share, str(run.coach.get("verdict", ""))
        begins = _("queued") if run.state in ("queued", "waiting") else _("starting")
        return "working", percent(share) if run.step else begins, share, ""
    if run.state == "paused":
        return "look", _("paused"), share, _("The run is paused. It goes on where it stopped.")
    if facts.models:
        return "done", ngettext("%(n)s run", "%(n)s runs", facts.runs), 1, ""
    return "todo", ngettext("%(n)s run", "%(n)s runs", facts.runs), 0, _("No run has left a model yet.")


def _evaluate(facts: Facts) -> tuple[str, str, float, str]:
    evaluation = facts.evaluation
    if evaluation is None:
        return "todo", "", 0, "" if facts.models else _("There is no model to evaluate yet.")
    if evaluation.state in project_facts.WORKING:
        share = evaluation.done / evaluation.total if evaluation.total else 0.0
        return "working", percent(share), share, ""
    if evaluation.state == "failed":
        return "look", _("Look"), 0.5, _("The last evaluation failed; what it had scored is kept.")
    if facts.model is not None and evaluation.model_id != facts.model.id:
        return "todo", _("new model"), 0, _("The newest model has not been evaluated.")
    return "done", "", 1, ""


def _chat(facts: Facts) -> tuple[str, str, float, str]:
    if facts.messages:
        return "done", ngettext("%(n)s answer", "%(n)s answers", facts.messages), 1, ""
    return "todo", "", 0, "" if facts.models else _("There is no model to talk to yet.")


def _refine(facts: Facts) -> tuple[str, str, float, str]:
    fact = _("%(n)s to correct", n=number(facts.thumbs_down)) if facts.thumbs_down else ""
    return ("done", fact, 1, "") if facts.thumbs else ("todo", "", 0, _("Rate answers in the chat; they gather here."))


def _deploy(facts: Facts) -> tuple[str, str, float, str]:
    if facts.keys:
        return "done", ngettext("%(n)s key", "%(n)s keys", facts.keys), 1, ""
    return "todo", "", 0, _("Make an API key, and programs can ask your model.")


def _monitor(facts: Facts) -> tuple[str, str, float, str]:
    if facts.calls:
        return "done", ngettext("%(n)s call", "%(n)s calls", facts.calls), 1, ""
    return "todo", "", 0, _("No calls yet.")


def in_session(
    session: Session, actor: Actor, project: Project, stage: str, facts: Facts | None = None
) -> SimpleNamespace:
    """The whole rail of one project page; `facts` where the page has read them already."""
    facts = facts or project_facts.of_projects(session, [project.id])[project.id]
    others = list(service.visible(session, actor))[:SWITCHER_LIMIT]
    found = stages(project, facts)
    root = f"/projects/{project.id}"
    bottom = [
        SimpleNamespace(name="overview", label=_("Overview"), icon="layout-dashboard", url=root),
        SimpleNamespace(name="data", label=_("Data"), icon="database", url=f"{root}/data"),
        SimpleNamespace(name="train", label=_("Train"), icon="activity", url=f"{root}/runs"),
        SimpleNamespace(name="chat", label=_("Chat"), icon="message-circle", url=f"{root}/chat"),
    ]
    kind = _(gallery.template(project.template).kind_label)
    named = SimpleNamespace(id=project.id, name=project.name, kind_label=kind)
    is_working = any(one.state == "working" for one in found)
    return SimpleNamespace(
        project=named, projects=others, stages=found, bottom=bottom, stage=stage, is_working=is_working
    )
