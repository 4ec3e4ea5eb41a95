"""Notices when a run ends: to a web address or by e-mail. Sent by the housekeeper, at least once, with patience."""

import logging
import smtplib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore
import httpx
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import addresses
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.core.errors import Invalid, NotFound
from app.core.numbers import loss as shown_loss
from app.core.security import decrypt, encrypt
from app.runs import service
from app.runs.models import END_STATES, Notice, Run

log = logging.getLogger(__name__)
_WAITS_S = (60, 300, 1800)
_TIMEOUT = httpx.Timeout(10, connect=5)
_MOST_A_RUN = 10
_sending = threading.Lock()


class _NotSent(Exception):
    """Why a notice did not arrive, as a sentence."""


@dataclass(frozen=True)
class Letter:
    """What a notice says: `title` in one line, `text` with what is to be known besides."""

    notice_id: str
    channel: str
    target: str
    title: str
    text: str
    payload: dict[str, Any]


def has_mail() -> bool:
    """Whether the operator has set up a mail server."""
    return bool(get_settings().smtp_url and get_settings().mail_from)


def ask_for(session: Session, actor: Actor, run_id: str, *, channel: str, target: str = "") -> Notice:
    """Send a notice when the run ends. E-mail goes to the asker's own address; a web address has passed check_address.

    Raises Invalid where there is no mail server, or for too many notices.
    """
    run = service.get(session, actor, run_id, need="editor")
    if channel == "email":
        if not has_mail() or not actor.email:
            raise Invalid(fields={"target": "This installation has no mail server. Its operator can set one up."})
        target = actor.email
    elif channel != "webhook":
        raise Invalid(fields={"channel": "Choose e-mail or a web address."})
    known = of_run(session, run)
    for one in known:
        if one.channel == channel and decrypt(one.target) == target:
            return one
    if len(known) >= _MOST_A_RUN:
        raise Invalid(fields={"target": f"A run sends at most {_MOST_A_RUN} notices. Remove one first."})
    notice = Notice(run_id=run.id, channel=channel, target=encrypt(target), shown=_shown(channel, target))
    session.add(notice)
    session.flush()
    return notice


def check_address(target: str) -> None:
    """Refuse what is no public web address, in words; the connection checks again at each sending.

    It asks for the name's addresses: call it outside of every transaction. Raises Invalid.
    """
    if len(target) > 500 or not addresses.is_whole(target):
        raise Invalid(fields={"target": "This is not a web address. Write it whole, with https:// in front."})
    parts = urlsplit(target)
    try:
        addresses.resolved(str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))
    except addresses.Forbidden:
        raise Invalid(
            fields={"target": "This address lies in a private network. Choose a public one, or ask the operator."}
        ) from None
    except httpcore.ConnectError:
        raise Invalid(fields={"target": "This name is not known. Check the address for a typing mistake."}) from None


def forget(session: Session, actor: Actor, run_id: str, notice_id: str) -> None:
    """Take a notice back."""
    run = service.get(session, actor, run_id, need="editor")
    notice = session.get(Notice, notice_id)
    if notice is None or notice.run_id != run.id:
        raise NotFound
    session.delete(notice)


def of_run(session: Session, run: Run) -> Sequence[Notice]:
    """The run's notices, in the order of asking."""
    return session.scalars(select(Notice).where(Notice.run_id == run.id).order_by(Notice.created_at, Notice.id)).all()


def _shown(channel: str, target: str) -> str:
    """What the page shows: a web address often holds a secret behind its host."""
    return target if channel == "email" else str(urlsplit(target).hostname)


def deliver_in_background() -> None:
    """Send what is due without holding up the caller: somebody else's server may take its time."""
    if not _sending.locked():
        threading.Thread(target=deliver, name="notices", daemon=True).start()


def deliver() -> int:
    """Send every due notice of an ended run; how many arrived. One round at a time in a process."""
    if not _sending.acquire(blocking=False):
        return 0
    try:
        with reading() as session:
            query = (
                select(Notice, Run)
                .join(Run, Run.id == Notice.run_id)
                .where(Notice.state == "waiting", Run.state.in_(END_STATES))
                .where(or_(Notice.next_try_at.is_(None), Notice.next_try_at <= utcnow()))
            )
            due = [(notice, run) for notice, run in session.execute(query.limit(20))]
        sent = 0
        for notice, run in due:
            try:
                one = letter(notice, run)
                (_post if one.channel == "webhook" else _mail)(one)
            except _NotSent as error:
                _note(notice.id, str(error))
            except Exception:
                # One that cannot even be written, such as for a key file that was exchanged, holds up no other.
                log.exception("a notice was not sent", extra={"notice": notice.id})
                _note(notice.id, "It could not be sent; the log says why.")
            else:
                _note(notice.id, "")
                sent += 1
        return sent
    finally:
        _sending.release()


def letter(notice: Notice, run: Run) -> Letter:
    """What to say about the end of a run."""
    how = {"succeeded": "is ready", "failed": "failed", "cancelled": "was cancelled"}[run.state]
    title = f"Run {run.number}, “{' '.join(run.name.split())}”, {how}"
    text = f"{title}."
    if run.state == "succeeded" and run.best_loss is not None:
        text += f" Lowest validation loss: {shown_loss(run.best_loss)}."
    elif run.sentence:
        text += " " + run.sentence.split("\n\n", 1)[0]
    about = {
        "id": run.id, "number": run.number, "name": run.name, "project_id": run.project_id, "state": run.state,
        "reason": run.reason, "step": run.step, "best_loss": run.best_loss,
    }  # fmt: skip
    payload = {"event": "run.ended", "id": notice.id, "text": text, "run": about}
    return Letter(notice.id, notice.channel, decrypt(notice.target), title, text, payload)


def _post(one: Letter) -> None:
    try:
        with addresses.client() as client:
            answer = client.post(one.target, json=one.payload, timeout=_TIMEOUT)
    except (httpx.HTTPError, httpcore.ConnectError, httpx.InvalidURL) as error:
        raise _NotSent(f"The address could not be reached ({type(error).__name__}).") from error
    if not answer.is_success:
        raise _NotSent(f"The address answered {answer.status_code}.")


def _mail(one: Letter) -> None:
    settings = get_settings()
    server = urlsplit(settings.smtp_url)
    message = EmailMessage()
    message["From"], message["To"] = settings.mail_from, one.target
    message["Subject"] = one.title
    message["Message-ID"] = f"<{one.notice_id}@gpt-builder>"
    message.set_content(one.text)
    secure = server.scheme == "smtps"
    kind = smtplib.SMTP_SSL if secure else smtplib.SMTP
    try:
        with kind(server.hostname or "localhost", server.port or (465 if secure else 25), timeout=10) as post:
            post.ehlo()
            if not secure and post.has_extn("starttls"):
                post.starttls()
            if server.username:
                post.login(unquote(server.username), unquote(server.password or ""))
            post.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise _NotSent(f"The mail server did not take it ({type(error).__name__}).") from error


def _note(notice_id: str, error: str) -> None:
    with transaction() as session:
        notice = session.get(Notice, notice_id)
        if notice is None:
            return
        notice.tries += 1
        notice.error = error
        if not error:
            notice.state, notice.sent_at = "sent", utcnow()
        elif notice.tries > len(_WAITS_S):
            notice.state = "failed"
        else:
            notice.next_try_at = utcnow() + timedelta(seconds=_WAITS_S[notice.tries - 1])
