"""The publish page: model ids, keys, programs to copy, a question to try, and what was used."""

import re
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.contracts.conversation import Message
from app.contracts.generation import Sampling, Waiting
from app.core import markdown
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.core.errors import AppError
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.deployments import calls, keys, names
from app.deployments.forms import KeyForm, TryForm
from app.deployments.snippets import QUESTION, snippets
from app.deployments.stream import LOADING_PATIENCE_S
from app.inference import client
from app.inference.waiting import Waits
from app.projects import service as projects
from app.projects.models import Objective

router = APIRouter()
TRY_TOKENS = 200
_DEPLOY_PAGE = re.compile(r"/projects/([a-z0-9]{20})/deploy")


def base_url(request: Request) -> str:
    """The address that programs use; behind a proxy on https the proxy's."""
    scheme = "https" if get_settings().is_https else request.url.scheme
    return f"{scheme}://{request.headers['host']}/v1"


def _page(
    request: Request, session: Session, actor: Actor, project_id: str, *, status: int = 200, **more: Any
) -> Response:
    project = projects.get(session, actor, project_id)
    published = names.published(session, actor, project_id=project_id)
    chosen = str(request.query_params.get("model", "")) or (published[0].id if published else "")
    known = {one.id for one in published}
    model_id = chosen if chosen in known else (published[0].id if published else "my-project-run-1")
    objective = session.get(Objective, project.id)
    samples = objective.samples if objective else []
    example = next((str(sample["question"]) for sample in samples if str(sample.get("question") or "").strip()), "")
    listed = keys.listing(session, actor, project_id)
    context: dict[str, Any] = {
        "errors": {}, "values": {}, "new_key": "", "answer": None, "question": example or QUESTION,
    }  # fmt: skip
    return render(
        request,
        "deployments/page.html",
        status=status,
        # The answer to a form is this page, too: a reload must find it.
        headers={"HX-Push-Url": f"/projects/{project_id}/deploy"} if request.method == "POST" else None,
        project=project,
        stage="deploy",
        models=published,
        model_options=[(one.id, one.id) for one in published],
        model_id=model_id,
        keys=listed,
        key_use=calls.by_key(session, [one.id for one in listed]),
        no_use=calls.KeyUse(),
        days=calls.by_day(session, actor, project_id),
        now=utcnow(),
        snippets=snippets(base_url(request), model_id, example),
        base_url=base_url(request),
        markdown=markdown.render,
        scopes=keys.SCOPES,
        strong=keys.STRONG,
        usage=calls.usage(session, actor, project_id),
        recent=calls.recent(session, actor, project_id),
        may_make_keys=actor.may(project.workspace_id, "owner"),
        may_ask=actor.may(project.workspace_id, "annotator"),
        **context | more,
    )


@router.get("/projects/{project_id}/deploy")
def page(request: Request, project_id: str, actor: ActorDep) -> Response:
    with reading() as session:
        project = projects.get(session, actor, project_id)
        is_missing = bool(names.missing_names(session, project.workspace_id))
    if is_missing:
        with transaction() as session:
            names.give_names(session, project.workspace_id)
    with reading() as session:
        return _page(request, session, actor, project_id)


@router.post("/projects/{project_id}/deploy/keys")
def make_key(request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """The key is in the answer to this one request and nowhere else."""
    projects.get(session, actor, project_id, need="owner")
    form, errors = checked(KeyForm, values)
    if form is None:
        return _page(request, session, actor, project_id, status=422, errors=errors, values=values)
    _key, text = keys.make(
        session,
        actor,
        project_id,
        name=form.name,
        scopes=list(form.scopes),
        is_for_workspace=form.reach == "workspace",
        expires_at=utcnow() + timedelta(days=form.days) if form.days else None,
        requests_per_minute=form.requests_per_minute,
        tokens_per_minute=form.tokens_per_minute,
        monthly_tokens=form.monthly_tokens,
        models=[one for one in form.models if one],
    )
    return _page(request, session, actor, project_id, new_key=text)


@router.post("/keys/{key_id}/revoke")
def revoke_key(request: Request, key_id: str, actor: ActorDep, session: SessionDep) -> Response:
    key = keys.revoke(session, actor, key_id)
    came_from = _DEPLOY_PAGE.search(request.headers.get("referer", ""))
    project_id = key.project_id or (came_from.group(1) if came_from else None)
    response = RedirectResponse(f"/projects/{project_id}/deploy" if project_id else "/projects", 303)
    flash(
        response,
        _("Revoked “%(name)s”", name=key.name),
        _("Its next request is refused, and answers on their way end."),
    )
    return response


def _not_for_long(waiting: Waiting) -> None:
    """Give up what the API would give up, too. Raises Waits."""
    if waiting.why != "turn" and waiting.so_far_s > LOADING_PATIENCE_S:
        raise Waits(waiting)


@router.post("/projects/{project_id}/deploy/try")
def try_it(request: Request, project_id: str, actor: ActorDep, values: FormValues) -> Response:
    """One question, answered as the API would; the answer is part of the page. No transaction is open meanwhile."""
    with reading() as session:
        projects.get(session, actor, project_id, need="annotator")
        form, errors = checked(TryForm, values)
        if form is None:
            return _page(
                request, session, actor, project_id, status=422, errors=errors, question=values.get("question")
            )
        _published, target = names.target_of(session, actor, form.model)
    sampling, question = Sampling(temperature=0, max_tokens=TRY_TOKENS), Message(role="user", content=form.question)
    prompt: dict[str, Any] = {"prompt": form.question}
    if target.is_chat:
        system = [Message(role="system", content=target.system_prompt)] if target.system_prompt else []
        prompt = {"messages": [*system, question]}
    more: dict[str, Any] = {"question": form.question}
    status = 200
    try:
        more["answer"] = client.answer(client.request_for(target, sampling, **prompt), _not_for_long)
    except AppError as error:
        more["errors"], status = {"question": error.sentence}, 422
    with reading() as session:
        return _page(request, session, actor, project_id, status=status, **more)
