"""The one next step of a project: an action, its reason, and at most one other way."""

from dataclasses import dataclass

from app.core.numbers import number, percent
from app.core.translations import gettext as _
from app.overview import facts as project_facts
from app.overview.facts import Facts


@dataclass(frozen=True)
class Way:
    """A button: label, page of the project, icon."""

    label: str
    path: str
    icon: str = ""


@dataclass(frozen=True)
class NextStep:
    """What the card says. `tone` is "bad" where something broke and comes first for that reason."""

    title: str
    reason: str
    first: Way
    second: Way | None = None
    tone: str = ""


def next_step(facts: Facts) -> NextStep:
    """What to do now, most urgent first."""
    return _repair(facts) or _wait(facts) or _prepare(facts) or _use(facts)


def _repair(facts: Facts) -> NextStep | None:
    run = facts.run
    if run is not None and run.state == "failed":
        reason = run.sentence or _("What was saved before is kept.")
        way = Way(_("See what happened"), f"/runs/{run.id}", "activity")
        return NextStep(_("Run %(number)s stopped early", number=run.number), reason, way, tone="bad")
    if facts.files_failed:
        reason = _("The page names the file, the line and the way out. Nothing else was changed.")
        return NextStep(_("Look at a file that could not be read"), reason, Way(_("Open data"), "data", "database"))
    if facts.files_unmapped:
        reason = _("We are not sure which column holds the question. You see a preview while you choose.")
        return NextStep(_("Say what the columns mean"), reason, Way(_("Open data"), "data", "database"))
    return None


def _wait(facts: Facts) -> NextStep | None:
    run = facts.run
    if run is not None and project_facts.is_training(facts):
        page = f"/runs/{run.id}"
        if not run.step:
            reason = _("It begins as soon as the machine is free. You can leave this page.")
            return NextStep(
                _("Run %(number)s is waiting for its turn", number=run.number),
                reason,
                Way(_("See the run"), page, "activity"),
            )
        share = percent(run.step / run.total_steps) if run.total_steps else number(run.step)
        reason = _(
            "It is at %(share)s. The best checkpoint is kept by itself, so you can stop at any time.", share=share
        )
        return NextStep(_("Watch it learn"), reason, Way(_("See training"), page, "activity"))
    if run is not None and run.state == "paused":
        reason = _("It goes on exactly where it stopped, at step %(step)s.", step=number(run.step))
        return NextStep(
            _("Go on with run %(number)s", number=run.number), reason, Way(_("Open the run"), f"/runs/{run.id}", "play")
        )
    if facts.files_reading or facts.version_working is not None:
        reason = _("Your rows are being read. You can leave this page; the work goes on.")
        return NextStep(_("A moment for your data"), reason, Way(_("See progress"), "data", "database"))
    return None


def _prepare(facts: Facts) -> NextStep | None:
    if not facts.task:
        reason = _("Two sentences are enough. They become the model’s instruction and the questions of its final exam.")
        return NextStep(_("Say what it shall do"), reason, Way(_("Write the objective"), "objective", "target"))
    if not facts.files:
        reason = _("A spreadsheet of questions and answers is enough. It stays on this computer.")
        way = Way(_("Bring data"), "data", "upload")
        return NextStep(_("Bring your first file"), reason, way, Way(_("Objective"), "objective", "target"))
    if facts.version is None:
        reason = _(
            "%(rows)s rows are in. Look at the suggested fixes, then freeze them into a version to train on.",
            rows=number(facts.rows),
        )
        return NextStep(
            _("Clean and freeze your rows"), reason, Way(_("Open clean"), "clean", "sparkles"), Way(_("Data"), "data")
        )
    if not facts.runs:
        reason = _("Version %(number)s has %(rows)s rows to learn from. Three presets are worked out for them.",
                   number=facts.version.number, rows=number(facts.version.train_rows))  # fmt: skip
        return NextStep(
            _("Choose a recipe and start training"), reason, Way(_("Choose a recipe"), "recipe", "sliders-horizontal")
        )
    if not facts.models:
        reason = _("The last run ended without a model. Its page says why, and the recipe is still there.")
        return NextStep(
            _("Train again"), reason, Way(_("Open the recipe"), "recipe", "sliders-horizontal"), Way(_("Runs"), "runs")
        )
    return None


def _use(facts: Facts) -> NextStep:
    if not facts.messages:
        reason = _("Five minutes of chatting tell you whether the tone is right, better than any number.")
        return NextStep(
            _("Talk to your model"),
            reason,
            Way(_("Open chat"), "chat", "message-circle"),
            Way(_("Evaluate"), "evaluate"),
        )
    is_evaluated = (
        facts.evaluation is not None and facts.model is not None and facts.evaluation.model_id == facts.model.id
    )
    if not is_evaluated:
        reason = _(
            "It answers rows that it has never seen, beside the model it came from. You see what training was worth."
        )
        return NextStep(
            _("Measure what it learned"),
            reason,
            Way(_("Evaluate"), "evaluate", "clipboard-check"),
            Way(_("Chat"), "chat"),
        )
    if not facts.keys:
        reason = _("Any program that speaks to OpenAI’s interface can ask your model, on this machine.")
        return NextStep(
            _("Let programs use it"), reason, Way(_("Make an API key"), "deploy", "rocket"), Way(_("Chat"), "chat")
        )
    if facts.thumbs_down:
        reason = _(
            "%(n)s answers were marked as bad. Correct them, add them to your data, and train another round.",
            n=number(facts.thumbs_down),
        )
        return NextStep(
            _("Teach it from its mistakes"),
            reason,
            Way(_("Open refine"), "refine", "thumbs-down"),
            Way(_("Data"), "data"),
        )
    reason = _("Evaluated, and open to programs. More rows of the kind it gets wrong help most.")
    return NextStep(
        _("Your model is in use"), reason, Way(_("Open monitor"), "monitor", "gauge"), Way(_("Add data"), "data")
    )
