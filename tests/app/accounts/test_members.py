"""Members: invitations and reset links that work once, roles that are denied by default, a log that shows changes."""

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update
from typer.testing import CliRunner

from app import cli
from app.accounts import audit, members, passwords
from app.accounts.models import AuditEntry, Invitation, Member
from app.accounts.service import Actor
from app.core.db import reading, transaction, utcnow
from app.core.errors import Conflict, Forbidden, Gone, NotFound
from app.projects import service as projects
from tests.visitors import PASSWORD, Person, browser_of, make_person, make_project, make_workspace, token_in


@pytest.fixture
def ana(database: object) -> Person:
    return make_person("Ana")


def invitation_link(app: FastAPI, owner: Person, role: str = "editor", email: str = "") -> str:
    form = {"workspace_id": owner.workspace_id, "role": role, "email": email}
    page = browser_of(app, owner).post("/members/invitations", data=form)
    assert page.status_code == 200, page.text
    return next(word for word in page.text.replace('"', " ").replace("<", " ").split() if "/join?token=" in word)


def path_of(link: str) -> str:
    parts = urlsplit(link.split(">")[-1])
    return f"{parts.path}?{parts.query}"


def test_an_invited_person_joins_with_the_role(app: FastAPI, ana: Person) -> None:
    path = path_of(invitation_link(app, ana, "annotator"))
    guest = browser_of(app)
    page = guest.get(path)
    assert page.status_code == 200
    token = parse_qs(urlsplit(path).query)["token"][0]
    form = {"token": token, "name": "Ben", "email": "ben@example.org", "password": PASSWORD}
    answer = guest.post("/join", data=form | {"csrf_token": token_in(page.text)})
    assert answer.status_code == 303
    with reading() as session:
        people = members.people(session, ana.actor, workspace_id=ana.workspace_id)
    assert {person.name: person.role for person in people} == {"Ana": "owner", "Ben": "annotator"}
    assert next(person for person in people if person.name == "Ben").last_sign_in_at is not None
    assert browser_of(app).get(path).status_code == 410


def test_an_invitation_for_one_address_fits_no_other(app: FastAPI, ana: Person) -> None:
    path = path_of(invitation_link(app, ana, "viewer", "ben@example.org"))
    guest = browser_of(app)
    token = parse_qs(urlsplit(path).query)["token"][0]
    form = {"token": token, "name": "Eve", "email": "eve@example.org", "password": PASSWORD}
    answer = guest.post("/join", data=form | {"csrf_token": token_in(guest.get(path).text)})
    assert answer.status_code == 422
    eve = make_person("Eve")
    assert browser_of(app, eve).post("/join", data={"token": token}).status_code == 422


def test_old_and_withdrawn_invitations_are_worthless(app: FastAPI, ana: Person) -> None:
    path = path_of(invitation_link(app, ana))
    with transaction() as session:
        session.execute(update(Invitation).values(expires_at=utcnow() - timedelta(seconds=1)))
    assert browser_of(app).get(path).status_code == 410
    path = path_of(invitation_link(app, ana))
    with reading() as session:
        newest = session.scalars(select(Invitation).order_by(Invitation.created_at.desc())).first()
    assert newest is not None
    browser_of(app, ana).post(f"/invitations/{newest.id}/withdraw")
    assert browser_of(app).get(path).status_code == 410


def test_a_known_person_joins_a_second_workspace(app: FastAPI, ana: Person) -> None:
    ben = make_person("Ben")
    path = path_of(invitation_link(app, ana, "viewer"))
    browser = browser_of(app, ben)
    assert ben.email in browser.get(path).text
    token = parse_qs(urlsplit(path).query)["token"][0]
    assert browser.post("/join", data={"token": token}).status_code == 303
    assert browser.get(f"/members?workspace={ana.workspace_id}").status_code == 200


def test_roles_below_owner_cannot_manage_members(database: object, ana: Person) -> None:
    for role in ("viewer", "annotator", "editor"):
        person = make_person("Cleo", role, ana.workspace_id)
        with transaction() as session, pytest.raises(Forbidden):
            members.invite(session, person.actor, workspace_id=ana.workspace_id, role="owner")
        with transaction() as session:
            mine = session.scalars(select(Member).where(Member.user_id == person.user_id)).one()
            with pytest.raises(Forbidden):
                members.change_role(session, person.actor, mine.id, role="owner")


def test_the_last_owner_stays(database: object, ana: Person) -> None:
    with transaction() as session:
        mine = session.scalars(select(Member).where(Member.user_id == ana.user_id)).one()
        with pytest.raises(Conflict):
            members.change_role(session, ana.actor, mine.id, role="viewer")
        with pytest.raises(Conflict):
            members.remove(session, ana.actor, mine.id)
    ben = make_person("Ben", "owner", ana.workspace_id)
    with transaction() as session:
        assert members.remove(session, ana.actor, mine.id) is True
    with reading() as session:
        assert [person.name for person in members.people(session, ben.actor, workspace_id=ana.workspace_id)] == ["Ben"]


def test_a_removed_member_is_a_stranger_on_the_next_request(app: FastAPI, ana: Person) -> None:
    ben = make_person("Ben", "editor", ana.workspace_id)
    browser = browser_of(app, ben)
    assert browser.get(f"/members?workspace={ana.workspace_id}").status_code == 200
    with transaction() as session:
        member = session.scalars(select(Member).where(Member.user_id == ben.user_id)).one()
        members.remove(session, ana.actor, member.id)
    assert browser.get(f"/members?workspace={ana.workspace_id}").status_code == 404


def test_a_reset_link_sets_a_new_password_once(app: FastAPI, ana: Person) -> None:
    ben = make_person("Ben", "editor", ana.workspace_id, passwords.hashed(PASSWORD))
    with transaction() as session:
        member = session.scalars(select(Member).where(Member.user_id == ben.user_id)).one()
        token = members.reset_link(session, ana.actor, member.id)
    guest = browser_of(app)
    page = guest.get(f"/reset?token={token}")
    form = {"token": token, "password": "violin meadow copper", "csrf_token": token_in(page.text)}
    assert guest.post("/reset", data=form).status_code == 303
    assert browser_of(app, ben).get("/account").status_code == 303
    assert guest.post("/reset", data=form).status_code == 410
    sign_in = {"email": ben.email, "password": "violin meadow copper", "csrf_token": form["csrf_token"]}
    assert guest.post("/sign-in", data=sign_in).status_code == 303


def test_an_owner_cannot_take_over_somebody_who_belongs_elsewhere(database: object, ana: Person) -> None:
    """Whoever sets a person's password is that person, also in the workspaces of others."""
    ben = make_person("Ben", "viewer", ana.workspace_id)
    elsewhere = make_workspace("Another firm")
    with transaction() as session:
        session.add(Member(workspace_id=elsewhere, user_id=ben.user_id, role="owner"))
        member = session.scalars(
            select(Member).where(Member.user_id == ben.user_id, Member.workspace_id == ana.workspace_id)
        ).one()
    with transaction() as session, pytest.raises(Forbidden):
        members.reset_link(session, ana.actor, member.id)


def test_the_gate_is_closed_by_default(database: object, ana: Person) -> None:
    project_id = make_project(ana.workspace_id)
    with reading() as session:
        with pytest.raises(NotFound):
            projects.get(session, Actor(user_id="somebody"), project_id)
        for role, need, may in [
            ("viewer", "annotator", False),
            ("annotator", "annotator", True),
            ("editor", "owner", False),
        ]:
            actor = Actor("somebody", roles={ana.workspace_id: role})
            if may:
                assert projects.get(session, actor, project_id, need=need).id == project_id
            else:
                with pytest.raises(Forbidden):
                    projects.get(session, actor, project_id, need=need)


def test_a_refusal_is_written_down(app: FastAPI, ana: Person) -> None:
    viewer = make_person("Vera", "viewer", ana.workspace_id)
    form = {"workspace_id": ana.workspace_id, "role": "owner"}
    assert browser_of(app, viewer).post("/members/invitations", data=form).status_code == 403
    page = browser_of(app, ana).get("/audit?action=access.refused")
    assert "/members/invitations" in page.text
    assert "Vera" in page.text


def test_the_audit_chain_shows_what_was_changed(database: object, ana: Person) -> None:
    for index in range(5):
        with transaction() as session:
            audit.record(session, ana.actor, "thing.done", workspace_id=ana.workspace_id, details={"n": index})
    with reading() as session:
        assert audit.first_broken(session) is None
        third = session.scalars(select(AuditEntry.id).order_by(AuditEntry.id).offset(2)).first()
    with transaction() as session:
        session.execute(update(AuditEntry).where(AuditEntry.id == third).values(details={"n": 99}))
    with reading() as session:
        assert audit.first_broken(session) == third
    with transaction() as session:
        entry = session.get(AuditEntry, third)
        session.delete(entry)
    with reading() as session:
        assert (audit.first_broken(session) or 0) > (third or 0)


def test_the_console_helps_an_owner_who_forgot_the_password(app: FastAPI, ana: Person) -> None:
    done = CliRunner().invoke(cli.app, ["reset-link", ana.email.upper()])
    assert done.exit_code == 0
    assert browser_of(app).get(done.output.split()[-1]).status_code == 200
    assert CliRunner().invoke(cli.app, ["reset-link", "nobody@example.org"]).exit_code == 1


def test_the_console_makes_one_account_an_address(app: FastAPI, ana: Person) -> None:
    words = ["create-user", "dora@example.org", "--name", "Dora", "--password", PASSWORD]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    again = CliRunner().invoke(cli.app, words)
    assert again.exit_code == 1
    assert "has an account already" in again.output


def test_too_old_to_reset(database: object, ana: Person) -> None:
    with transaction() as session:
        token = members.new_reset_token(session, user_id=ana.user_id)
        newer = members.new_reset_token(session, user_id=ana.user_id)
        with pytest.raises(Gone):
            members.find_link(session, token=token, kind="reset")
        session.execute(update(Invitation).values(expires_at=utcnow() - timedelta(seconds=1)))
        with pytest.raises(Gone):
            members.find_link(session, token=newer, kind="reset")
