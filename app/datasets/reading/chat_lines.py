"""What was said in a chat log, line by line: IRC, WhatsApp, "User: … / Bot: …", and the JSON of Slack and Discord."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Refused
from app.datasets.reading.lines import read_lines
from app.datasets.reading.sniffed import Dialect, Sniffed

_USER_WORDS = "user human you customer client guest visitor me q question student patient caller prompt"
_ASSISTANT_WORDS = "bot assistant ai agent support chatbot a answer gpt chatgpt model advisor operator"
USERS = frozenset(_USER_WORDS.split(" "))
ASSISTANTS = frozenset(_ASSISTANT_WORDS.split(" "))
JSON_LIMIT_BYTES = 256 * 2**20
_IRC = re.compile(
    r"\[?(?P<h>\d{1,2}):(?P<m>\d{2})(?::\d{2})?\]?\s+(?:<[\s@+%&~]*(?P<who>[^>\s]{1,64})>|\*\s+(?P<did>\S{1,64}))\s(?P<text>.*)"
)
_IRC_NOTICE = re.compile(r"(?:===|---|\*\*\*|-!-|\[?\d{1,2}:\d{2}(?::\d{2})?\]?\s+(?:===|-!-|\*\*\*|<--|-->))")
_SLACK_TIME, _SLACK_TYPE = re.compile(r'"ts"\s*:\s*"\d{9,}\.\d+"'), re.compile(r'"type"\s*:\s*"message"')
_WHATSAPP = re.compile(
    r"\u200e?\[?(?P<date>\d{1,4}[./-]\d{1,2}[./-]\d{2,4}),?\s+(?P<h>\d{1,2})[:.](?P<m>\d{2})(?:[:.]\d{2})?"
    r"(?:[\s\u202f]*(?P<half>[AaPp])\.?\s?[Mm]\.?)?\]?\s*(?:-\s*)?(?P<rest>.*)"
)
_TURN = re.compile(r"\s{0,4}(?:\*\*)?(?P<who>[A-Za-z][\w -]{0,20}?)(?:\*\*)?\s?:(?:\*\*)?\s?(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class Said:
    """One message. `at` is None without a clock; `is_first`: the log itself begins a new conversation here."""

    line: int
    speaker: str
    text: str
    at: datetime | None = None
    is_first: bool = False


def dialect_of(text: str) -> Dialect:
    """irc, whatsapp, turns, slack, discord or nothing, by the head of a file."""
    head = text.lstrip()[:4000]
    if (
        head.startswith("[")
        and re.search(r'"ts"\s*:\s*"\d{9,}\.\d+"', head)
        and re.search(r'"type"\s*:\s*"message"', head)
    ):
        return "slack"
    if head.startswith("{") and '"messages"' in text and re.search(r'"guild"\s*:\s*\{', head) and '"channel"' in head:
        return "discord"
    lines = [line for line in text.splitlines()[:400] if line.strip()]
    if len(lines) < 2 or (head[0] in "[{" and not _WHATSAPP.match(lines[0]) and not _IRC.match(lines[0])):
        return ""
    irc = sum(bool(_IRC.match(line) or _IRC_NOTICE.match(line)) for line in lines)
    if irc >= 0.8 * len(lines) and any(_IRC.match(line) for line in lines):
        return "irc"
    dated = [m for line in lines if (m := _WHATSAPP.match(line))]
    if len(dated) >= 0.3 * len(lines) and sum(": " in m["rest"] for m in dated) >= 0.5 * len(dated):
        return "whatsapp"
    who = [m["who"].strip().lower() for line in lines if (m := _TURN.match(line))]
    users, assistants = sum(w in USERS for w in who), sum(w in ASSISTANTS or w.endswith("bot") for w in who)
    return "turns" if users and assistants and users + assistants >= 0.3 * len(lines) else ""


def read_said(path: Path, sniffed: Sniffed) -> Iterator[Said | Problem]:
    """Every message in order; lines that are none as problems. Raises Refused for JSON that cannot be opened."""
    match sniffed.dialect:
        case "slack" | "discord":
            yield from _from_json(path, sniffed)
        case "whatsapp":
            yield from _whatsapp(path, sniffed)
        case "irc":
            yield from _irc(path, sniffed)
        case _:
            yield from _turns(path, sniffed)


def _irc(path: Path, sniffed: Sniffed) -> Iterator[Said | Problem]:
    # The log has clock times only: a day passes when the clock goes back by more than an hour.
    day = datetime(1, 1, 1)  # noqa: DTZ001
    last = day
    for line in read_lines(path, sniffed):
        if not line.text.strip():
            continue
        found = _IRC.match(line.text)
        if found is None:
            code = "chat.notice" if _IRC_NOTICE.match(line.text) else "chat.line"
            yield Problem(line.number, code, line.raw[:RAW_LIMIT_BYTES], is_kept=code == "chat.notice")
            continue
        hour, minute = int(found["h"]) % 24, int(found["m"]) % 60
        at = day + timedelta(hours=hour, minutes=minute)
        if last - at > timedelta(hours=1):
            day, at = day + timedelta(days=1), at + timedelta(days=1)
        last = at
        text = found["text"] if found["who"] else f"*{found['text']}*"
        yield Said(line.number, found["who"] or found["did"], text, at)


def _whatsapp(path: Path, sniffed: Sniffed) -> Iterator[Said | Problem]:
    lines = list(read_lines(path, sniffed))
    is_day_first = _is_day_first([m["date"] for line in lines if (m := _WHATSAPP.match(line.text))])
    open_: Said | None = None
    for line in lines:
        found = _WHATSAPP.match(line.text)
        at = _moment(found, is_day_first) if found else None
        if found is None or at is None:
            if open_ is not None:
                open_ = Said(open_.line, open_.speaker, f"{open_.text}\n{line.text}".rstrip(), open_.at)
            elif line.text.strip():
                yield Problem(line.number, "chat.line", line.raw[:RAW_LIMIT_BYTES])
            continue
        if open_ is not None:
            yield open_
            open_ = None
        who, colon, text = found["rest"].partition(": ")
        if not colon or len(who) > 80:
            yield Problem(line.number, "chat.notice", line.raw[:RAW_LIMIT_BYTES], is_kept=True)
            continue
        open_ = Said(line.number, who.strip("\u200e\u202a\u202c ~"), text.strip("\u200e"), at)
    if open_ is not None:
        yield open_


def _is_day_first(dates: list[str]) -> bool:
    parts = [re.split(r"[./-]", d) for d in dates]
    if any(int(p[1]) > 12 for p in parts):
        return False
    return any(int(p[0]) > 12 for p in parts) or any("." in d for d in dates)


def _moment(found: re.Match[str], is_day_first: bool) -> datetime | None:
    one, two, three = (int(p) for p in re.split(r"[./-]", found["date"]))
    if one > 31:
        year, month, day = one, two, three
    else:
        year, (day, month) = three, ((one, two) if is_day_first else (two, one))
    hour = int(found["h"])
    if found["half"]:
        hour = hour % 12 + (12 if found["half"].lower() == "p" else 0)
    try:
        return datetime(year + 2000 if year < 100 else year, month, day, hour, int(found["m"]))  # noqa: DTZ001
    except ValueError:
        return None


def _turns(path: Path, sniffed: Sniffed) -> Iterator[Said | Problem]:
    """A blank line before a question parts conversations, unless blank lines stand between all turns."""
    open_: Said | None = None
    is_blank = False
    is_parted = _is_parted(path, sniffed)
    for line in read_lines(path, sniffed):
        text = line.text
        if not text.strip() or set(text.strip()) <= set("-=*_"):
            is_blank = is_blank or not text.strip() or len(text.strip()) >= 3
            continue
        found = _TURN.match(text)
        who = found["who"].strip().lower() if found else ""
        if found is not None and (who in USERS or who in ASSISTANTS or who.endswith("bot")):
            if open_ is not None:
                yield open_
            is_first = is_blank and is_parted and who in USERS
            open_ = Said(line.number, found["who"].strip(), found["text"].strip(), None, is_first)
        elif open_ is not None:
            gap = "\n\n" if is_blank else "\n"
            open_ = Said(open_.line, open_.speaker, f"{open_.text}{gap}{text}", None, open_.is_first)
        else:
            yield Problem(line.number, "chat.line", line.raw[:RAW_LIMIT_BYTES])
        is_blank = False
    if open_ is not None:
        yield open_


def _is_parted(path: Path, sniffed: Sniffed) -> bool:
    parted = together = 0
    is_blank = True
    for line in read_lines(path, sniffed):
        if not line.text.strip():
            is_blank = True
        elif (found := _TURN.match(line.text)) and found["who"].strip().lower() not in USERS:
            parted, together = parted + is_blank, together + (not is_blank)
            is_blank = False
        else:
            is_blank = False
    return together > parted


def _from_json(path: Path, sniffed: Sniffed) -> Iterator[Said | Problem]:
    if path.stat().st_size > JSON_LIMIT_BYTES:
        raise Refused("This chat export is over 256 MB. Export a shorter time, then bring the parts.")
    try:
        value = orjson.loads(path.read_bytes()[sniffed.bom_bytes :])
    except orjson.JSONDecodeError as error:
        raise Refused("This chat export is damaged: it is no whole JSON. Export it again.") from error
    found = value.get("messages", []) if isinstance(value, dict) else value
    items = found if isinstance(found, list) else []
    said = [
        (number, item, _slack(item) if sniffed.dialect == "slack" else _discord(item))
        for number, item in enumerate(items, 1)
    ]
    for number, item, one in sorted(said, key=lambda s: (s[2][2].timestamp() if s[2] and s[2][2] else 0, s[0])):
        if one is None:
            notice = isinstance(item, dict)
            yield Problem(
                number, "chat.notice" if notice else "chat.line", orjson.dumps(item)[:RAW_LIMIT_BYTES], is_kept=notice
            )
        else:
            yield Said(number, *one)


def _slack(item: Any) -> tuple[str, str, datetime | None] | None:
    if (
        not isinstance(item, dict)
        or item.get("type") != "message"
        or item.get("subtype") in ("channel_join", "channel_leave")
    ):
        return None
    profile = item.get("user_profile") if isinstance(item.get("user_profile"), dict) else {}
    who = (profile or {}).get("real_name") or item.get("username") or item.get("user") or item.get("bot_id")
    text = item.get("text")
    if not who or not isinstance(text, str) or not text.strip():
        return None
    try:
        at = datetime.fromtimestamp(float(item.get("ts", "")), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        at = None
    return str(who)[:80], text, at


def _discord(item: Any) -> tuple[str, str, datetime | None] | None:
    author = item.get("author") if isinstance(item, dict) else None
    text = item.get("content") if isinstance(item, dict) else None
    if not isinstance(author, dict) or not isinstance(text, str) or not text.strip():
        return None
    try:
        at: datetime | None = datetime.fromisoformat(str(item.get("timestamp")))
        at = at if at is None or at.tzinfo else at.replace(tzinfo=UTC)
    except ValueError:
        at = None
    return str(author.get("nickname") or author.get("name") or "unknown")[:80], text, at
