"""Secrets: keys of services by their prefix, other keys by what stands before them, private keys, URL logins."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from app.datasets.steps.personal_numbers import Span

_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?:proj-|ant-|or-|svcacct-|admin-)?[A-Za-z0-9_-]{20,180}"
    r"|(?:AKIA|ASIA|AROA|AIDA)[A-Z2-7]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,90}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,200}|xapp-\d-[A-Za-z0-9-]{20,160}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,300}|GOCSPX-[A-Za-z0-9_-]{28}"
    r"|(?:sk|rk|pk|whsec)_(?:live|test)_[A-Za-z0-9]{16,120}|whsec_[A-Za-z0-9+/=]{24,80}"
    r"|hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}|dop_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}|key-[0-9a-f]{32}|SK[0-9a-f]{32}|sq0(?:atp|csp)-[A-Za-z0-9_-]{22,60}"
    r"|eyJ[A-Za-z0-9_-]{8,800}\.eyJ[A-Za-z0-9_-]{8,1600}\.[A-Za-z0-9_-]{8,800}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{58}|\d{8,10}:AA[A-Za-z0-9_-]{33}"
    r")(?![A-Za-z0-9])"
)
_HOOK = re.compile(r"https://hooks\.slack\.com/services/([A-Z0-9]{6,14}/[A-Z0-9]{6,14}/[A-Za-z0-9]{16,40})")
_ASSIGNED = re.compile(
    r"(?:api|app|access|auth|secret|private|client|account|service|encryption|signing|bearer|session)?[ _.-]{0,2}"
    r"(?:key|token|secret|password|passwd|pwd|bearer|authorization)(?:[ _-]?(?:id|value))?"
    r"[\"'`]?(?: is |: ?bearer | ?[:=]{1,2}>? ?|, ?| )[\"'`]?([A-Za-z0-9_+/.=~!@$%^&*-]{12,200})",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"your|example|sample|xxxx|\*\*\*|\.\.\.|placeholder|changeme|redacted|<|environ|getenv|config\.|\$\{",
    re.IGNORECASE,
)
_UUID_OR_PATH = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:/[\w.-]+){2,}/?|\w+(?:\.\w+)+(?:\(.*)?", re.IGNORECASE
)


def entropy(text: str) -> float:
    """Bits a character (Shannon)."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


_ALONE = re.compile(r"(?<![\w/.=@:#&+%-])[A-Za-z0-9+/_-]{24,128}={0,2}(?![\w/.@:+%-])")


def _is_drawn(value: str) -> bool:
    """Whether letters of both cases and digits alternate as by chance, which no word or name does."""
    if value.islower() or value.isupper():
        return False
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" if c.islower() else "s" for c in value]
    changes = sum(a != b for a, b in pairwise(kinds))
    return {"d", "u", "l"} <= set(kinds) and changes >= len(value) / 3 and entropy(value) >= 4.0


def prefixed_keys(text: str) -> Iterator[Span]:
    """Keys of services by their prefix."""
    for match in _PREFIXED.finditer(text):
        body = match.group()[4:]
        if entropy(body) >= 2.8 and not _PLACEHOLDER.search(body):
            yield Span("key", *match.span())


def hooks(text: str) -> Iterator[Span]:
    """What is secret in the address of a web hook."""
    for match in _HOOK.finditer(text):
        yield Span("key", *match.span(1))


def assigned_keys(text: str) -> Iterator[Span]:
    """What stands after a word such as `token` and looks drawn at random."""
    for match in _ASSIGNED.finditer(text):
        value = re.split(r"&\w+=", match.group(1))[0].rstrip(".,;:!?&")
        kinds = sum(any(map(test, value)) for test in (str.islower, str.isupper, str.isdigit))
        if kinds < 2 or not any(map(str.isdigit, value)) or len(value) < 12:
            continue
        if entropy(value) < 3.0 or _PLACEHOLDER.search(value) or _UUID_OR_PATH.fullmatch(value):
            continue
        yield Span("key", match.start(1), match.start(1) + len(value))


def keys_alone(text: str) -> Iterator[Span]:
    """Long words without anything before them that look drawn at random."""
    for match in _ALONE.finditer(text):
        if _is_drawn(match.group()):
            yield Span("key", *match.span())


_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?!-----)[\s\S]){0,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)


def private_keys(text: str) -> Iterator[Span]:
    """PEM and PGP private keys, also where the end is missing."""
    for match in _BLOCK.finditer(text):
        if len(match.group()) > 60:
            yield Span("private_key", match.start(), match.start() + len(match.group().rstrip()))


_LOGIN = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://([^\s/:@\"'<>]{1,128}:[^\s/@\"'<>]{1,256})@(?=[\w\[])")
_QUERY = re.compile(
    r"[?&](?:access_token|api_?key|apikey|auth|token|key|secret|password|pwd|sig|signature|code)=([^\s&#\"'<>]{8,400})",
    re.IGNORECASE,
)


def url_logins(text: str) -> Iterator[Span]:
    """User and password, or a key, inside an address of the web."""
    for match in _LOGIN.finditer(text):
        if match.group(1) != "user:password":
            yield Span("url", *match.span(1))
    for match in _QUERY.finditer(text):
        if re.search(r"\d", match.group(1)) and not _PLACEHOLDER.search(match.group(1)):
            yield Span("url", match.start(1), match.start(1) + len(match.group(1).rstrip(".,;:!?)]")))
