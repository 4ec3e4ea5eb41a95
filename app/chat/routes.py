"""The chat page: asking, asking again, stopping, rating, earlier conversations. The live text is in stream.py."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.chat import answering, asked, corrections, ratings, service, transcripts
from app.chat.forms import AskForm, CorrectionForm, EditForm, FeedbackForm, SettingsForm, TitleForm
from app.chat.models import TAGS_BY_THUMB, Chat, ChatMessage
from app.contracts.generation import Sampling
from app.core import markdown
from app.core.after_commit import after_commit
from app.core.errors import NotFound
from app.core.flash import flash
from app.core.forms import FormValues, checked, filled
from app.core.templates import gettext as _
from app.core.templates import ngettext, render
from app.core.web import SessionDep, is_partial
from app.externals import service as externals
from app.inference import targets
from app.inference.targets import Choice
from app.projects import service as projects
from app.projects.models import Objective, Project

router = APIRouter()
MODEL = Annotated[str, Query(max_length=60)]


@router.get("/projects/{project_id}/chat")
def new_chat(
    request: Request, project_id: str, actor: ActorDep, session: SessionDep, model: MODEL = "", compare: MODEL = ""
) -> Response:
    """An empty conversation with the newest model, or the one named in the address."""
    project = projects.get(session, actor, project_id)
    return _page(request, session, actor, project, None, [model, compare])


@router.get("/chats/{chat_id}")
def show_chat(request: Request, chat_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """A saved conversation."""
    chat = service.get(session, actor, chat_id)
    project = projects.get(session, actor, chat.project_id)
    return _page(request, session, actor, project, chat, chat.model_refs)


@router.post("/projects/{project_id}/chat")
def ask_first(request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """The first message makes the conversation."""
    return _ask(request, session, actor, project_id, values, None)


@router.post("/chats/{chat_id}")
def ask_next(request: Request, chat_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """A further message. htmx gets the new turn; without scripts the page is shown again."""
    chat = service.get(session, actor, chat_id)
    return _ask(request, session, actor, chat.project_id, values, chat)


def _ask(
    request: Request, session: Session, actor: Actor, project_id: str, values: dict[str, Any], chat: Chat | None
) -> Response:
    # A suggestion's button sends the empty box along: the suggestion is meant.
    if suggestion := values.pop("suggestion", ""):
        values["message"] = suggestion
    form, errors = checked(AskForm, values)
    project = projects.get(session, actor, project_id, need=service.ASKS)
    if form is None:
        refs = chat.model_refs if chat else [str(values.get("model", ""))]
        return _page(request, session, actor, project, chat, refs, errors=errors, typed=values)
    made, answers = service.ask(
        session,
        actor,
        project_id,
        content=form.message,
        refs=[form.model, *form.compare],
        sampling=form.sampling(),
        system_prompt=form.system_prompt,
        chat_id=chat.id if chat else None,
        is_blind=form.blind,
    )
    for answer in answers:
        _begin(session, actor, made, answer)
    if chat is not None and is_partial(request):
        *before, turn = service.turns(session, made)
        if [one.question.id for one in before] != form.seen:
            # Somebody has asked in another window: this page lacks a turn, or shows another version.
            return Response(status_code=204, headers={"HX-Redirect": f"/chats/{made.id}"})
        return render(request, "chat/_turn.html", turn=turn, **_shown(session, actor, made))
    return RedirectResponse(f"/chats/{made.id}", 303)


def _begin(session: Session, actor: Actor, chat: Chat, answer: ChatMessage) -> None:
    target = asked.resolve(session, actor, chat.project_id, answer.model_ref)
    order = answering.Order(
        message_id=answer.id,
        target=target,
        messages=service.history(session, chat, answer, target),
        sampling=Sampling(**chat.sampling),
    )
    after_commit(session, lambda: answering.start(order))


@router.post("/chats/{chat_id}/settings")
def set_up(chat_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Changed settings count at once, for “Try again”, too; the page stays as it is."""
    form = filled(SettingsForm, values)
    service.set_up(session, actor, chat_id, sampling=form.sampling(), system_prompt=form.system_prompt)
    return Response(status_code=204)


@router.post("/chats/messages/{message_id}/edit")
def edit(message_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Ask an earlier question in other words; both versions stay."""
    form = filled(EditForm, values)
    chat, answers = service.edit(session, actor, message_id, content=form.message)
    for answer in answers:
        _begin(session, actor, chat, answer)
    return RedirectResponse(f"/chats/{chat.id}#m-{answers[0].parent_id}" if answers else f"/chats/{chat.id}", 303)


@router.post("/chats/messages/{message_id}/choose")
def choose(message_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Show another version, and what followed it."""
    chat = service.choose(session, actor, message_id)
    return RedirectResponse(f"/chats/{chat.id}#m-{message_id}", 303)


@router.post("/chats/messages/{message_id}/vote")
def vote(message_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Which answer is better; then the names are told."""
    chat = service.vote(session, actor, message_id)
    return RedirectResponse(f"/chats/{chat.id}#m-{message_id}", 303)


@router.get("/chats/{chat_id}/export")
def export(
    chat_id: str,
    actor: ActorDep,
    session: SessionDep,
    form: Annotated[Literal["md", "jsonl"], Query(alias="as")] = "md",
) -> Response:
    """The conversation as it is shown, to read or to train on."""
    chat = service.get(session, actor, chat_id)
    name = f"{transcripts.file_stem(chat)}.{form}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    text = transcripts.markdown(session, actor, chat) if form == "md" else transcripts.jsonl(session, actor, chat)
    kind = "text/markdown; charset=utf-8" if form == "md" else "application/x-ndjson"
    return Response(text, media_type=kind, headers=headers)


@router.post("/chats/messages/{message_id}/again")
def ask_again(request: Request, message_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Another answer to the same question."""
    chat, answer = service.again(session, actor, message_id)
    _begin(session, actor, chat, answer)
    return RedirectResponse(f"/chats/{chat.id}", 303)


@router.post("/chats/messages/{message_id}/stop")
def stop(request: Request, message_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Stop the answer and keep what was said."""
    chat, answer = service.request_stop(session, actor, message_id)
    if answer.state == "streaming":
        after_commit(session, lambda: answering.stop(message_id))
    return Response(status_code=204) if is_partial(request) else RedirectResponse(f"/chats/{chat.id}", 303)


@router.post("/chats/messages/{message_id}/feedback")
def rate(request: Request, message_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """A thumb, and perhaps a note."""
    form = filled(FeedbackForm, values)
    chat, message = ratings.rate(session, actor, message_id, thumb=form.thumb, note=form.note, tags=form.tags)
    if is_partial(request):
        turn = service.turn_of(session, chat, message)
        return render(request, "chat/_tools.html", message=message, turn=turn, **_shown(session, actor, chat))
    return RedirectResponse(f"/chats/{chat.id}", 303)


@router.post("/chats/messages/{message_id}/correction")
def correct(message_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """What a badly rated answer should have said, from the refine page."""
    form = filled(CorrectionForm, values)
    chat = corrections.write(session, actor, message_id, text=form.correction)
    response = RedirectResponse(f"/projects/{chat.project_id}/refine#answer-{message_id}", 303)
    flash(response, _("Better answer saved") if form.correction else _("Better answer taken back"))
    return response


@router.post("/projects/{project_id}/corrections")
def bring_corrections(project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Every correction of the project as one source file, for the next version."""
    file, count = corrections.bring(session, actor, project_id)
    response = RedirectResponse(f"/projects/{file.project_id}/data", 303)
    words = ngettext("%(n)s better answer is in your data", "%(n)s better answers are in your data", count)
    flash(response, words, _("Freeze a new version to train on them."))
    return response


@router.post("/chats/{chat_id}/title")
def rename(chat_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Another name for a conversation."""
    form = filled(TitleForm, values)
    chat = service.rename(session, actor, chat_id, form.title)
    return RedirectResponse(f"/chats/{chat.id}", 303)


@router.post("/chats/{chat_id}/delete")
def delete(chat_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Put a conversation away, with a way back."""
    chat = service.delete(session, actor, chat_id)
    response = RedirectResponse(f"/projects/{chat.project_id}/chat", 303)
    flash(response, _("Conversation deleted"), chat.title, undo_url=f"/chats/{chat.id}/restore")
    return response


@router.post("/chats/{chat_id}/restore")
def restore(chat_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Undo a deletion."""
    chat = service.restore(session, actor, chat_id)
    return RedirectResponse(f"/chats/{chat.id}", 303)


@router.get("/projects/{project_id}/chats")
def search_chats(
    request: Request,
    project_id: str,
    actor: ActorDep,
    session: SessionDep,
    q: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Earlier conversations whose title or words match; without scripts as part of the whole page."""
    chats = service.listing(session, actor, project_id, search=q)
    if not is_partial(request):
        project = projects.get(session, actor, project_id)
        return _page(request, session, actor, project, None, [], chats=chats, search=q)
    return render(request, "chat/_history.html", chats=chats, chat=None, search=q, project_id=project_id)


def _shown(session: Session, actor: Actor, chat: Chat) -> dict[str, Any]:
    return {
        "chat": chat,
        "names": service.names(session, actor, chat),
        "ratings": ratings.by_message(session, actor, chat),
        "markdown": markdown.render,
        "may_ask": True,
        "tags": TAGS_BY_THUMB,
    }


def _named(session: Session, actor: Actor, project_id: str, refs: list[str], choices: list[Choice]) -> list[str]:
    """Those of `refs` that can be asked; what the picker is too short for is added to it, never another one taken."""
    known = {choice.ref for choice in choices}
    for ref in refs:
        if ref and ref not in known:
            try:
                choices.append(Choice(ref, targets.resolve(session, actor, project_id, ref).name, "ended"))
            except NotFound:
                continue
            known.add(ref)
    return [ref for ref in refs if ref in known]


def _page(
    request: Request,
    session: Session,
    actor: Actor,
    project: Project,
    chat: Chat | None,
    refs: list[str],
    *,
    errors: dict[str, str] | None = None,
    typed: dict[str, Any] | None = None,
    chats: Sequence[Chat] | None = None,
    search: str = "",
) -> Response:
    choices = asked.choices(session, actor, project.id)
    asked_for = [ref for ref in refs if ref]
    refs = _named(session, actor, project.id, refs, choices)
    is_other = bool(asked_for and asked_for[0] not in refs and choices)
    if not refs and choices:
        refs = [choices[0].ref]
    try:
        target = asked.resolve(session, actor, project.id, refs[0]) if refs else None
    except NotFound:
        target = None
    objective = session.get(Objective, project.id)
    sampling = Sampling(**chat.sampling) if chat and chat.sampling else Sampling()
    turns = service.turns(session, chat) if chat else []
    system_prompt = chat.system_prompt if chat else (target.system_prompt if target else "")
    return render(
        request,
        "chat/page.html",
        status=422 if errors else 200,
        project=project,
        stage="chat",
        chat=chat,
        turns=turns,
        memory=service.memory(turns, target),
        chats=service.listing(session, actor, project.id) if chats is None else chats,
        choices=choices,
        refs=refs,
        target=target,
        is_other=is_other,
        base=targets.base_of(session, actor, project.id, refs[0]) if target else None,
        suggestions=[s["question"] for s in (objective.samples if objective else []) if s.get("question")][:3],
        sampling=sampling,
        system_prompt=system_prompt,
        errors=errors or {},
        typed=typed or {},
        search=search,
        project_id=project.id,
        may_ask=actor.may(project.workspace_id, service.ASKS),
        outside=[choice for choice in choices if choice.group == externals.KIND and choice.ref in refs],
        may_edit=actor.may(project.workspace_id, "editor"),
        names=service.names(session, actor, chat) if chat else {},
        ratings=ratings.by_message(session, actor, chat) if chat else {},
        markdown=markdown.render,
        tags=TAGS_BY_THUMB,
    )
