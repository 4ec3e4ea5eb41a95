"""The list of projects, the overview of one, and its feedback: pages that look at every slice below."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts.access import ActorDep
from app.chat import corrections
from app.chat.models import TAGS
from app.core.flash import flash
from app.core.forms import FormValues
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep, is_partial
from app.overview import demos, journey, service, testing
from app.overview import facts as project_facts
from app.overview.next_step import next_step
from app.projects import gallery
from app.projects import service as projects

router = APIRouter()


@router.get("/projects")
def listing(request: Request, actor: ActorDep, session: SessionDep, q: str = "") -> Response:
    """Every project as a card: where it stands and what comes next."""
    search = q.strip()[:100]
    rows = projects.visible(session, actor, search=search)
    facts = project_facts.of_projects(session, [project.id for project in rows])
    cards = [
        {
            "project": project,
            "template": gallery.template(project.template),
            "stages": journey.stages(project, facts[project.id]),
            "facts": facts[project.id],
            "next": next_step(facts[project.id]),
            "may_edit": actor.may(project.workspace_id, "editor"),
            "may_delete": actor.may(project.workspace_id, "owner"),
        }
        for project in rows
    ]
    return render(
        request, "overview/projects.html", stage="projects", cards=cards, search=search,
        templates=[template for template in gallery.TEMPLATES.values() if template.key != "free"],
        may_create=bool(projects.workspaces_for(actor)), demos=list(demos.gallery().values()),
    )  # fmt: skip


@router.get("/projects/{project_id}")
def overview(project_id: str, request: Request, actor: ActorDep, session: SessionDep) -> Response:
    """One project: next step, tiles, runs, what happened lately."""
    project = projects.get(session, actor, project_id)
    facts = project_facts.of_projects(session, [project.id])[project.id]
    runs, curves = service.runs_of(session, actor, project.id)
    return render(
        request, "overview/project.html", stage="overview", project=project, facts=facts, next=next_step(facts),
        runs=runs, curves=curves, recently=service.recently(session, actor, project.id),
        is_training=project_facts.is_training(facts), start=gallery.template(project.template),
        may_edit=actor.may(project.workspace_id, "editor"), may_delete=actor.may(project.workspace_id, "owner"),
    )  # fmt: skip


@router.get("/projects/{project_id}/journey")
def stages(
    project_id: str, request: Request, actor: ActorDep, session: SessionDep, stage: str = "", told: bool = False
) -> Response:
    """The stages in the rail alone, for pages that stay open while something is at work; `told`: they ask when their
    stream says so, not by the clock."""
    project = projects.get(session, actor, project_id)
    rail = journey.in_session(session, actor, project, stage)
    return render(request, "_ui/_journey.html", rail=rail, rail_is_told=told)


@router.get("/projects/{project_id}/refine")
def refine(project_id: str, request: Request, actor: ActorDep, session: SessionDep) -> Response:
    """What people said about answers: where the next round of training begins."""
    project = projects.get(session, actor, project_id)
    answers = service.rated_answers(session, actor, project.id)
    return render(
        request, "overview/refine.html", stage="refine", project=project, answers=answers,
        tags=TAGS, corrections=len(corrections.pairs(session, actor, project.id)), longest=corrections.LONGEST,
        may_correct=actor.may(project.workspace_id, "annotator"), may_bring=actor.may(project.workspace_id, "editor"),
    )  # fmt: skip


@router.post("/chats/messages/{message_id}/test")
def use_as_test(message_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The question of an answer is asked in every evaluation from now on."""
    chat, is_whole = testing.keep(session, actor, message_id)
    response = RedirectResponse(f"/chats/{chat.id}#m-{message_id}", 303)
    words = _("Every evaluation asks it and compares with this answer; change that on the Evaluate page.")
    if not is_whole:
        words = _("On the Evaluate page, write what it should answer; until then it is not asked.")
    flash(response, _("Kept as a test"), words)
    return response


@router.post("/demos")
def start_demo(actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Make a demo project, in the workspace that is named or the person's first; it goes on by itself."""
    key, workspace_id = (str(values.get(name, "")) for name in ("demo", "workspace_id"))
    project = demos.start(session, actor, key, workspace_id=workspace_id)
    return RedirectResponse(f"/projects/{project.id}/demo", 303)


@router.get("/projects/{project_id}/demo")
def demo(project_id: str, request: Request, actor: ActorDep, session: SessionDep) -> Response:
    """What a demo is doing before its run begins; then the run itself."""
    project = projects.get(session, actor, project_id)
    if not project.demo:
        return RedirectResponse(f"/projects/{project.id}", 303)
    steps, run_id, error = demos.progress(session, project)
    wants_steps = is_partial(request) and request.headers.get("HX-Target", "").endswith("demo-steps")
    if run_id:
        path = f"/runs/{run_id}"
        return Response(headers={"HX-Redirect": path}) if wants_steps else RedirectResponse(path, 303)
    template = "overview/_demo_steps.html" if wants_steps else "overview/demo.html"
    return render(
        request, template, stage="overview", project=project, steps=steps, error=error,
        entry=demos.gallery().get(project.demo),
    )  # fmt: skip
