"""The first visit: no default account, one token that works once, passwords that are not the first to be tried."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.accounts import passwords, setup
from app.accounts.models import Setting, User
from app.accounts.sign_ins import FREE_TRIES
from app.core.db import reading, transaction
from tests.visitors import PASSWORD, token_in


def new_token() -> str:
    with transaction() as session:
        token = setup.setup_token(session)
    assert token
    return token


def form(client: TestClient, token: str, **changes: str) -> dict[str, str]:
    values = {"token": token, "name": "Ana Lima", "email": "Ana@Example.org", "password": PASSWORD}
    return values | {"csrf_token": token_in(client.get("/setup").text)} | changes


def test_from_the_console_token_to_a_signed_in_owner(client: TestClient) -> None:
    token = new_token()
    assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/projects"
    assert client.get("/account", headers={"accept": "text/html"}).headers["location"].startswith("/sign-in")
    assert client.get("/sign-in").headers["location"] == "/setup"
    answer = client.post("/setup", data=form(client, f"  {token.upper()} "))
    assert (answer.status_code, answer.headers["location"]) == (303, "/welcome")
    page = client.get("/welcome").text
    assert "System check" in page
    assert "demo" in page
    with reading() as session:
        user = session.scalars(select(User)).one()
        assert user.email == "ana@example.org"
        assert user.password_hash.startswith("$argon2id$")
        assert session.get(Setting, "setup_token_sha256") is None


def test_without_the_token_nobody_becomes_owner(client: TestClient) -> None:
    new_token()
    answer = client.post("/setup", data=form(client, "aaaaa-bbbbb-ccccc-ddddd"))
    assert answer.status_code == 422
    assert "not the token" in answer.text
    with reading() as session:
        assert session.scalars(select(User)).all() == []


def test_a_token_works_once_and_the_newest_only(client: TestClient) -> None:
    first, second = new_token(), new_token()
    assert client.post("/setup", data=form(client, first)).status_code == 422
    filled = form(client, second)
    assert client.post("/setup", data=filled).status_code == 303
    client.cookies.delete("sid")
    again = client.post("/setup", data=filled | {"email": "eve@example.org"})
    assert again.status_code == 422
    with transaction() as session:
        assert setup.setup_token(session) is None
        assert len(session.scalars(select(User)).all()) == 1


def test_only_the_hash_of_the_token_is_stored(database: object) -> None:
    token = new_token()
    with reading() as session:
        stored = [row.value for row in session.scalars(select(Setting))]
    assert len(stored) == 1
    assert token not in stored[0]
    assert token.replace("-", "") not in stored[0]


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "password1234",
        "Password2026!",
        "aaaaaaaaaaaa",
        "abcabcabcabc",
        "qwertyuiop12",
        "123456789012",
        "correct horse battery staple",
        "ana.lima2026!",
        "gptbuilder12",
        "x" * 300,
    ],
)
def test_passwords_that_are_tried_first_are_refused(password: str) -> None:
    assert passwords.problem(password, email="ana.lima@example.org", name="Ana Lima")


@pytest.mark.parametrize("password", [PASSWORD, "kräftig-Mond-Ziegel", "8h#kQ2!vvLp0", "trotting tulips at noon"])
def test_good_passwords_are_taken(password: str) -> None:
    assert passwords.problem(password, email="ana.lima@example.org", name="Ana Lima") is None


def test_a_refused_password_is_not_repeated(client: TestClient) -> None:
    token = new_token()
    answer = client.post("/setup", data=form(client, token, password="sesame-77"))
    assert answer.status_code == 422
    assert "too short" in answer.text
    assert "sesame-77" not in answer.text
    assert "Ana Lima" in answer.text


def test_a_weak_password_does_not_hide_a_wrong_token(client: TestClient) -> None:
    token = new_token()
    answer = client.post("/setup", data=form(client, "aaaaa-bbbbb-ccccc-ddddd", password="sesame-77", email="ana"))
    assert answer.status_code == 422
    for words in ("too short", "not the token", "Write an e-mail address"):
        assert words in answer.text
    assert "not the token" not in client.post("/setup", data=form(client, token, password="sesame-77")).text
    assert client.post("/setup", data=form(client, token)).status_code == 303


def test_each_look_at_the_token_counts_as_a_try(client: TestClient) -> None:
    new_token()
    filled = form(client, "aaaaa-bbbbb-ccccc-ddddd", password="short")
    said = [client.post("/setup", data=filled).text for _ in range(FREE_TRIES["address"] + 1)]
    assert "not the token" in said[0]
    assert "not the token" not in said[-1]
