"""Signing in: the same answer for unknown people, growing waits, and sessions that end when they should."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update

from app.accounts import passwords, sign_ins
from app.accounts.models import SignIn, SignInFailure, User
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.core.errors import TooMany
from app.core.security import token_sha256
from tests.visitors import PASSWORD, Person, browser_of, make_person, token_in


@pytest.fixture
def ana(database: object) -> Person:
    return make_person("Ana", password_hash=passwords.hashed(PASSWORD))


def sign_in(browser, email: str, password: str, **more: str):  # type: ignore[no-untyped-def]
    token = token_in(browser.get("/sign-in").text)
    return browser.post("/sign-in", data={"email": email, "password": password, "csrf_token": token, **more})


def test_sign_in_goes_where_the_person_wanted(app: FastAPI, ana: Person) -> None:
    browser = browser_of(app)
    assert browser.get("/account").headers["location"] == "/sign-in?next=/account"
    answer = sign_in(browser, ana.email.upper(), PASSWORD, next="/account")
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert browser.get("/account").status_code == 200


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "/a\r\nb", ""])
def test_sign_in_never_leads_to_another_site(app: FastAPI, ana: Person, target: str) -> None:
    assert sign_in(browser_of(app), ana.email, PASSWORD, next=target).headers["location"] == "/"


def test_wrong_password_and_unknown_person_look_alike(app: FastAPI, ana: Person) -> None:
    def body(email: str) -> str:
        browser = browser_of(app)
        text = sign_in(browser, email, "wrong-password-1").text
        return text.replace(email, "@").replace(token_in(text), "")

    assert body(ana.email) == body("nobody.abcdef@example.org")


def test_unknown_people_cost_the_same_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is argon2's: it runs for an unknown account as well (the ± 10 % is measured by a benchmark)."""
    known = passwords.hashed(PASSWORD)
    passwords.unknown_hash()

    def seconds(stored: str | None) -> float:
        best = []
        for _ in range(5):
            start = time.perf_counter()
            assert passwords.verify("wrong-password-1", stored) == (False, None)
            best.append(time.perf_counter() - start)
        return min(best)

    assert seconds(None) > 0.5 * seconds(known)


def begin(email: str, address: str) -> None:
    with transaction() as session:
        sign_ins.begin(session, email=email, address=address)


@pytest.mark.parametrize("is_known", [True, False])
def test_waits_grow_for_the_account_from_any_address(ana: Person, is_known: bool) -> None:
    email = ana.email if is_known else "nobody@example.org"
    for count in range(5):
        begin(email, f"198.51.100.{count}")
    with pytest.raises(TooMany, match="opens again in 1 s") as refused:
        begin(email, "198.51.100.99")
    assert 0 < refused.value.retry_after_s <= 1
    assert [sign_ins.wait_s("account", n) for n in (4, 5, 6, 9, 40)] == [0, 1, 2, 16, 300]


def test_waits_grow_for_an_address_that_tries_many_accounts(database: object) -> None:
    for count in range(20):
        begin(f"person{count}@example.org", "203.0.113.9")
    with pytest.raises(TooMany):
        begin("person20@example.org", "203.0.113.9")
    begin("person20@example.org", "203.0.113.10")


def test_the_right_password_is_refused_while_waiting_and_taken_after(app: FastAPI, ana: Person) -> None:
    browser = browser_of(app)
    for _ in range(5):
        assert sign_in(browser, ana.email, "wrong-password-1").status_code == 422
    with transaction() as session:  # eight wrong tries make a wait of eight seconds
        session.execute(update(SignInFailure).values(count=8, last_at=utcnow()))
    refused = sign_in(browser, ana.email, PASSWORD)
    assert refused.status_code == 429
    assert "opens again in" in refused.text
    with transaction() as session:
        session.execute(update(SignInFailure).values(last_at=utcnow() - timedelta(hours=1)))
    assert sign_in(browser, ana.email, PASSWORD).status_code == 303
    with reading() as session:
        assert [row.count for row in session.scalars(select(SignInFailure))] == [8]


def test_a_session_given_by_somebody_else_is_replaced(app: FastAPI, ana: Person) -> None:
    """Fixation: whatever cookie a browser brings, signing in makes a new one and ends the old one."""
    eve = make_person("Eve")
    answer = browser_of(app, eve).post("/sign-in", data={"email": ana.email, "password": PASSWORD})
    assert answer.status_code == 303
    assert eve.cookie not in answer.headers["set-cookie"]
    with reading() as session:
        ended = session.get(SignIn, token_sha256(eve.cookie))
        assert ended is not None
        assert ended.ended_at is not None


def test_a_cookie_is_dead_after_sign_out(app: FastAPI, ana: Person) -> None:
    browser = browser_of(app, ana)
    assert browser.get("/account").status_code == 200
    assert browser.post("/sign-out").status_code == 303
    assert browser_of(app, ana).get("/account").status_code == 303


def test_a_new_password_ends_every_other_session(app: FastAPI, ana: Person) -> None:
    with transaction() as session:
        other = sign_ins.start(session, user_id=ana.user_id)
    elsewhere = browser_of(app)
    elsewhere.cookies.set("sid", other)
    here = browser_of(app, ana)
    assert elsewhere.get("/account").status_code == 200
    wrong = here.post("/account/password", data={"current": "not it, not it", "password": "tulip engine harbour"})
    assert wrong.status_code == 422
    answer = here.post("/account/password", data={"current": PASSWORD, "password": "tulip engine harbour"})
    assert answer.status_code == 303
    assert here.get("/account").status_code == 200
    assert elsewhere.get("/account").status_code == 303
    assert browser_of(app, ana).get("/account").status_code == 303
    assert sign_in(browser_of(app), ana.email, "tulip engine harbour").status_code == 303


def test_a_switched_off_user_is_out_at_once(app: FastAPI, ana: Person) -> None:
    browser = browser_of(app, ana)
    assert browser.get("/account").status_code == 200
    with transaction() as session:
        session.execute(update(User).where(User.id == ana.user_id).values(is_active=False))
    assert browser.get("/account").status_code == 303
    assert sign_in(browser_of(app), ana.email, PASSWORD).status_code == 422


@pytest.mark.parametrize(("column", "setting"), [("seen_at", "session_idle_s"), ("created_at", "session_absolute_s")])
def test_sessions_grow_old(app: FastAPI, ana: Person, column: str, setting: str) -> None:
    limit = timedelta(seconds=getattr(get_settings(), setting))
    browser = browser_of(app, ana)
    with transaction() as session:
        session.execute(update(SignIn).values({column: utcnow() - limit + timedelta(minutes=1)}))
    assert browser.get("/account").status_code == 200
    with transaction() as session:
        session.execute(update(SignIn).values({column: utcnow() - limit - timedelta(minutes=1)}))
    assert browser.get("/account").status_code == 303


def test_using_a_session_keeps_it_from_idling_out(app: FastAPI, ana: Person) -> None:
    with transaction() as session:
        session.execute(update(SignIn).values(seen_at=utcnow() - timedelta(hours=2)))
    browser_of(app, ana).get("/account")
    with reading() as session:
        assert session.scalars(select(SignIn.seen_at)).one() > utcnow() - timedelta(minutes=1)


def test_only_the_hash_of_a_session_is_stored(ana: Person) -> None:
    with reading() as session:
        row = session.scalars(select(SignIn)).one()
    assert row.id_sha256 == token_sha256(ana.cookie)
    assert ana.cookie.encode() not in row.id_sha256


def test_an_ipv6_household_counts_as_one() -> None:
    assert sign_ins.network("2001:db8:1:2::5") == sign_ins.network("2001:db8:1:2:ffff::1")
    assert sign_ins.network("2001:db8:1:2::5") != sign_ins.network("2001:db8:1:3::5")
    assert sign_ins.network("::ffff:192.0.2.7") == sign_ins.network("192.0.2.7") == "192.0.2.7"
    assert sign_ins.network("testclient") == "testclient"


def test_a_clock_that_was_ahead_locks_nobody_out(ana: Person) -> None:
    begin(ana.email, "198.51.100.7")
    with transaction() as session:
        session.execute(update(SignInFailure).values(last_at=utcnow() + timedelta(days=4000)))
    begin(ana.email, "198.51.100.7")


def test_a_flood_of_sign_ins_does_not_take_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 takes 64 MB a check; forty threads at once would take 2.5 GB."""
    at_work, most, lock = 0, 0, threading.Lock()
    real = passwords._hashing.verify_and_update

    def counted(*arguments: str) -> object:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        try:
            return real(*arguments)
        finally:
            with lock:
                at_work -= 1

    monkeypatch.setattr(passwords._hashing, "verify_and_update", counted)
    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(lambda _: passwords.verify("wrong-password-1", None), range(12))) == {(False, None)}
    assert 1 <= most <= 4
