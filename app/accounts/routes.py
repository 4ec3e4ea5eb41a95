"""First visit, sign in and out, joining and resetting by link, and the account page."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts import member_pages, members, passwords, service, setup, sign_ins
from app.accounts.access import ActorDep, VisitorDep, clear_session_cookie, set_session_cookie, signed_in
from app.accounts.forms import (
    JoinForm,
    NameForm,
    PasswordForm,
    ResetForm,
    SetupForm,
    SignInForm,
    TokenForm,
    weak,
)
from app.core.csrf import session_cookie
from app.core.db import reading, transaction
from app.core.errors import AppError, Invalid, TooMany
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.logging import client_address
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep

router = APIRouter()
private = APIRouter(dependencies=[Depends(signed_in)])
WRONG = "The e-mail address or the password is not right."


def moved(request: Request, path: str) -> Response:
    """To another page with a whole new document: the page's token changes with the session."""
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"HX-Redirect": path})
    return RedirectResponse(path, 303)


def local_path(target: str) -> str:
    """The path to go to after signing in; never another site."""
    is_local = target.startswith("/") and not target.startswith(("//", "/\\")) and not set(target) & set("\r\n\t\\")
    return target if is_local else "/"


def _signed_in(request: Request, cookie: str, path: str) -> Response:
    response = moved(request, path)
    set_session_cookie(response, cookie)
    return response


@router.get("/")
def home() -> Response:
    return RedirectResponse("/projects", 303)


@router.get("/setup")
def setup_page(request: Request, session: SessionDep) -> Response:
    if service.has_users(session):
        return RedirectResponse("/sign-in", 303)
    return render(request, "accounts/setup.html", values={}, errors={}, password_help=passwords.HELP)


@router.post("/setup")
def set_up(request: Request, values: FormValues) -> Response:
    """The owner account, for whoever reads the token on the console."""
    form, errors = checked(SetupForm, values)
    typed = {name: str(values.get(name, "")) for name in ("token", "password", "email", "name")}
    if typed["password"]:
        errors = weak(typed["password"], email=typed["email"], name=typed["name"]) | errors
    try:
        with transaction() as session:
            sign_ins.begin(session, email=None, address=client_address.get())
            # All that is wrong is said at once; each look at the token counts as a try.
            if typed["token"] and not service.has_users(session):
                wrong = setup.token_problem(session, typed["token"])
                errors = ({"token": wrong} if wrong else {}) | errors
        if form is not None and not errors:
            password_hash = passwords.hashed(form.password)
            with transaction() as session:
                user = setup.create_owner(
                    session,
                    token=form.token,
                    name=form.name,
                    email=form.email,
                    password_hash=password_hash,
                    workspace_name=_("%(name)s’s workspace", name=form.name.split()[0]),
                )
                cookie = sign_ins.start(session, user_id=user.id, user_agent=request.headers.get("user-agent", ""))
            return _signed_in(request, cookie, "/welcome")
    except (Invalid, TooMany) as error:
        errors = _form_errors(error)
    return render(
        request, "accounts/setup.html", status=422, values=values, errors=errors, password_help=passwords.HELP
    )


def _form_errors(error: AppError) -> dict[str, str]:
    return getattr(error, "fields", {}) or {"": error.sentence}


@router.get("/sign-in")
def sign_in_page(request: Request, actor: VisitorDep, session: SessionDep, next: str = "/") -> Response:
    if actor is not None:
        return RedirectResponse(local_path(next), 303)
    if not service.has_users(session):
        return RedirectResponse("/setup", 303)
    return render(request, "accounts/sign_in.html", values={"next": local_path(next)}, errors={})


@router.post("/sign-in")
def sign_in(request: Request, values: FormValues) -> Response:
    """The same words and the same time for a wrong password and an unknown address; the password is checked between
    two short transactions, because it takes tens of milliseconds."""
    form, errors = checked(SignInForm, values)
    status = 422
    if form is not None:
        try:
            with transaction() as session:
                attempt = sign_ins.begin(session, email=form.email.strip().casefold(), address=client_address.get())
            is_right, newer = passwords.verify(form.password, attempt.password_hash)
            if is_right:
                with transaction() as session:
                    cookie = sign_ins.complete(
                        session,
                        attempt,
                        password_hash=newer,
                        old_cookie=request.cookies.get(session_cookie(), ""),
                        user_agent=request.headers.get("user-agent", ""),
                    )
                return _signed_in(request, cookie, local_path(form.next))
            errors = {"": WRONG}
        except TooMany as error:
            errors, status = {"": error.sentence}, 429
    safe = {"email": values.get("email", ""), "next": local_path(str(values.get("next", "/")))}
    return render(request, "accounts/sign_in.html", status=status, values=safe, errors=errors)


@router.post("/sign-out")
def sign_out(request: Request, session: SessionDep) -> Response:
    if cookie := request.cookies.get(session_cookie()):
        sign_ins.end(session, cookie=cookie)
    response = moved(request, "/sign-in")
    clear_session_cookie(response)
    return response


@router.get("/join")
def join_page(request: Request, actor: VisitorDep, session: SessionDep, token: str = "") -> Response:
    invitation = members.find_link(session, token=token, kind="join")
    values = {"email": invitation.email, "token": token}
    return _join_page(request, actor, values, {}, is_email_fixed=bool(invitation.email))


def _join_page(
    request: Request, actor: Any, values: dict[str, Any], errors: dict[str, str], *, is_email_fixed: bool = False
) -> Response:
    return render(
        request,
        "accounts/join.html",
        status=422 if errors else 200,
        actor=actor,
        values=values,
        errors=errors,
        is_email_fixed=is_email_fixed,
        password_help=passwords.HELP,
    )


@router.post("/join")
def join(request: Request, actor: VisitorDep, values: FormValues) -> Response:
    if actor is not None:
        return _join_as_known(request, actor, values)
    form, errors = checked(JoinForm, values)
    if form is not None:
        errors = weak(form.password, email=form.email, name=form.name)
    if form is not None and not errors:
        with reading() as session:
            members.find_link(session, token=form.token, kind="join")
        password_hash = passwords.hashed(form.password)
        try:
            with transaction() as session:
                user = members.join_as_new(
                    session, token=form.token, name=form.name, email=form.email, password_hash=password_hash
                )
                cookie = sign_ins.start(session, user_id=user.id, user_agent=request.headers.get("user-agent", ""))
            return _signed_in(request, cookie, "/projects")
        except Invalid as error:
            errors = _form_errors(error)
    return _join_page(request, None, values, errors)


def _join_as_known(request: Request, actor: Any, values: dict[str, Any]) -> Response:
    form, errors = checked(TokenForm, values)
    if form is not None:
        try:
            with transaction() as session:
                members.join_as_known(session, actor, token=form.token)
            return moved(request, "/projects")
        except Invalid as error:
            errors = {"": error.sentence}
    return _join_page(request, actor, values, errors)


@router.get("/reset")
def reset_page(request: Request, session: SessionDep, token: str = "") -> Response:
    members.find_link(session, token=token, kind="reset")
    return render(request, "accounts/reset.html", values={"token": token}, errors={}, password_help=passwords.HELP)


@router.post("/reset")
def reset(request: Request, values: FormValues) -> Response:
    form, errors = checked(ResetForm, values)
    if form is not None:
        errors = weak(form.password)
    if form is not None and not errors:
        with reading() as session:
            members.find_link(session, token=form.token, kind="reset")
        password_hash = passwords.hashed(form.password)
        with transaction() as session:
            members.set_password_by_link(session, token=form.token, password_hash=password_hash)
        response = moved(request, "/sign-in")
        flash(response, _("Your new password is set"), _("Sign in with it."))
        return response
    token = {"token": values.get("token", "")}
    return render(request, "accounts/reset.html", status=422, values=token, errors=errors, password_help=passwords.HELP)


@private.get("/welcome")
def welcome(request: Request, actor: ActorDep) -> Response:
    """After the first visit: the system check and the demo project."""
    return render(request, "accounts/welcome.html", stage="projects")


@private.get("/account")
def account(request: Request, actor: ActorDep, session: SessionDep) -> Response:
    return _account_page(request, actor, session, {})


def _account_page(request: Request, actor: Any, session: Any, errors: dict[str, str]) -> Response:
    return render(
        request,
        "accounts/account.html",
        status=422 if errors else 200,
        stage="account",
        errors=errors,
        sign_ins=sign_ins.open_sign_ins(session, actor),
        password_help=passwords.HELP,
    )


@private.post("/account/name")
def change_name(request: Request, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    form, errors = checked(NameForm, values)
    if form is None:
        return _account_page(request, actor, session, errors)
    members.rename_self(session, actor, name=form.name)
    return moved(request, "/account")


@private.post("/account/password")
def change_password(request: Request, actor: ActorDep, values: FormValues) -> Response:
    """The current password again, because an unlocked screen is not its owner; then a new session id."""
    form, errors = checked(PasswordForm, values)
    if form is not None:
        errors = weak(form.password, email=actor.email, name=actor.name)
    if form is not None and not errors:
        try:
            with transaction() as session:
                attempt = sign_ins.begin(session, email=actor.email, address=client_address.get())
            is_right, _newer = passwords.verify(form.current, attempt.password_hash)
            if is_right:
                password_hash = passwords.hashed(form.password)
                with transaction() as session:
                    members.change_password(session, actor, password_hash=password_hash)
                    cookie = sign_ins.complete(
                        session,
                        attempt,
                        old_cookie=request.cookies.get(session_cookie(), ""),
                        user_agent=request.headers.get("user-agent", ""),
                    )
                response = _signed_in(request, cookie, "/account")
                flash(response, _("Your new password is set"), _("You are signed out everywhere else."))
                return response
            errors = {"current": _("This is not your current password.")}
        except TooMany as error:
            errors = {"current": error.sentence}
    with reading() as session:
        return _account_page(request, actor, session, errors)


@private.post("/account/sign-outs")
def sign_out_elsewhere(request: Request, actor: ActorDep, session: SessionDep) -> Response:
    sign_ins.end_all(session, user_id=str(actor.user_id), but=actor.sign_in_sha256)
    response = moved(request, "/account")
    flash(response, _("Signed out everywhere else"))
    return response


private.include_router(member_pages.router)
router.include_router(private)
