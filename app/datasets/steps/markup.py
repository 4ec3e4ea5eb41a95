"""Web markup in rows: known elements become plain text, entities become characters; code and chat logs are left alone.

A generic tag pattern fires on a fifth of real rows, where chat names (`<nick>`) and code look like tags. So at least
two known elements, one of them closed or with a quoted attribute, outside of code.
"""

import html
import re
from html.entities import html5

from pydantic import Field
from selectolax.lexbor import LexborHTMLParser

from app.contracts.base import Contract
from app.datasets.steps.contract import RowRunner, Step, Words
from app.datasets.steps.rewriting import Rewritten, each, matching, rewriting

GATE = (
    r"(?i)</[a-z][a-z0-9]*\s*>|<[a-z][a-z0-9]*\s+[a-z-]+\s*=\s*[\"']|<br\s*/?>"
    r"|&(?:[a-z]{2,31}|#\d{1,7}|#x[0-9a-f]{1,6});"
)
_ELEMENTS = (
    " a abbr acronym address article aside b big blockquote body br button caption center cite code col"
    " colgroup dd del details dfn dir div dl dt em figcaption figure font footer form h1 h2 h3 h4 h5 h6 head"
    " header hr html i iframe img input ins kbd label li link main mark meta nav noscript ol optgroup option p"
    " picture pre q s samp script section select small source span strike strong style sub summary sup svg"
    " table tbody td textarea tfoot th thead title tr tt u ul var video"
)
_NAMES = "|".join(sorted(_ELEMENTS.split(), key=len, reverse=True))
_INSIDE = r"(?:\s+(?:[^<>\"'`]|\"[^\"<>]{0,2000}\"|'[^'<>]{0,2000}'){0,400})?\s*/?"
TAG = re.compile(
    rf"<(?:/\s*(?:{_NAMES})\s*|(?:{_NAMES}){_INSIDE})>|<!--[\s\S]{{0,20000}}?-->|<!doctype[^<>]{{0,300}}>",
    re.IGNORECASE,
)
_PROOF = re.compile(rf"</\s*(?:{_NAMES})\s*>|<(?:{_NAMES})\s[^<>]{{0,400}}?=\s*[\"']|<br\s*/?>\s*<br", re.IGNORECASE)
_CODE = re.compile(r"(^[ \t]*(?:```|~~~)[\s\S]*?(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)|`[^`\n]{1,400}`)", re.MULTILINE)
_LOG_LINE = re.compile(
    r"^\s*(?:\[?\d{1,2}:\d\d(?::\d\d)?(?:\s?[ap]m)?\]?\s*)?(?:<[^<>\s]{1,40}>|\*\s\S+)\s", re.MULTILINE | re.IGNORECASE
)
_PROGRAM = re.compile(
    r"[\"'(]<[a-z/!]|^\s*(?:import |from \w+ import|def \w+\(|class \w+|function\s*\w*\(|const |let |var |return\b"
    r"|#include|<\?(?:php|xml)|public |@\w+\(|\$\w+\s*=|(?:for|if|while) .{1,80}:$|\w+ = \w+[.(])"
    r"|[;{]\s*$",
    re.MULTILINE,
)
_BLOCKS = (
    " p div li tr h1 h2 h3 h4 h5 h6 ul ol dl dt dd table section article header footer main aside nav"
    " blockquote pre form figure hr option address center"
)
_SPACED, _UNREAD = " p h1 h2 h3 h4 h5 h6", " script style noscript iframe svg head title"
_NAME = re.compile(r"\A</?\s*([a-z0-9]+)")
_ENTITY = re.compile(r"&(?:#(?:\d{1,7}|[xX][0-9a-fA-F]{1,6})|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED = re.compile(r"&(?=(?:amp|lt|gt|AMP|LT|GT);|#0*(?:60|62|38);|#[xX]0*(?:3[cCeE]|26);)")


class MarkupParams(Contract):
    """Web markup. Code fences, code in backticks and chat logs are left alone."""

    is_link_kept: bool = Field(False, title="Keep addresses of links", description="“our page (https://…)”")
    is_entity_read: bool = Field(True, title="Read entities", description="“caf&eacute;” becomes “café”")


def is_chat_log(text: str) -> bool:
    """Whether lines begin with `<name>`, as in a log of a chat."""
    lines = text.count("\n") + 1
    return len(_LOG_LINE.findall(text)) >= max(1, lines // 3)


def has_markup(text: str) -> bool:
    """Two known elements, one of them closed or with a quoted attribute; no program, no chat log."""
    if len(TAG.findall(text)) < 2 or not _PROOF.search(text) or is_chat_log(text):
        return False
    return len(_PROGRAM.findall(text)) < 2


def _stripped(text: str, is_link_kept: bool) -> str:
    # What is no known element is text, and so is what was escaped: neither may come to life here.
    text = _ESCAPED.sub("&amp;", text)
    parts, place = [], 0
    names: set[str] = set()
    for match in TAG.finditer(text):
        parts += [text[place : match.start()].replace("<", "&lt;"), match.group()]
        place = match.end()
        names.update(_NAME.findall(match.group().lower()))
    if names & {"td", "th"}:
        # The parser adds the row that they stand in.
        names.add("tr")
    tree = LexborHTMLParser("<html><body>\u2060" + "".join([*parts, text[place:].replace("<", "&lt;")]))
    body = tree.body
    if body is None:
        return text
    # Each search walks the whole tree: only for what is there.
    if unread := names.intersection(_UNREAD.split()):
        body.strip_tags(sorted(unread))
    if "br" in names:
        for node in body.css("br"):
            node.replace_with("\n")
    if blocks := names.intersection(_BLOCKS.split()):
        for node in body.css(", ".join(sorted(blocks))):
            node.insert_before("\n")
            node.insert_after("\n")
    if spaced := names.intersection(_SPACED.split()):
        for node in body.css(", ".join(sorted(spaced))):
            node.insert_after("\n")
    if "li" in names:
        for node in body.css("li"):
            node.insert_before("- ")
    if cells := {"td", "th"} & names:
        for node in body.css(", ".join(sorted(cells))):
            node.insert_after(" ")
    if is_link_kept:
        for node in body.css("a[href]"):
            node.insert_after(f" ({node.attributes['href']})")
    plain = body.text(separator="").replace("\u2060", "", 1)
    # A hard space is kept from breaking the line, which means nothing in plain text.
    plain = plain.replace("\u00a0", " ")
    plain = re.sub(r"[ \t]*\n[ \t]*", "\n", plain.replace("\r", ""))
    return re.sub(r"\n{3,}", "\n\n", plain).strip("\n")


def _character(match: re.Match[str]) -> str:
    name = match.group()[1:]
    if not name.startswith("#") and name not in html5:
        return match.group()
    found = html.unescape(match.group())
    return " " if found == "\u00a0" else "" if found in "\u200b\u00ad" else found


def _unescaped(text: str) -> str:
    """Entities as characters, unless that made markup or new entities out of what was written about them."""
    gentle = _ENTITY.sub(lambda m: m.group() if _ESCAPED.match(m.group()) else _character(m), text)
    whole = _ENTITY.sub(_character, text)
    is_safe = not TAG.search(whole) and not _ENTITY.search(whole)
    return whole if is_safe else gentle


def rewritten(text: str, is_link_kept: bool = False, is_entity_read: bool = True) -> str:
    """The text without markup; code fences and code in backticks are left as they are."""
    parts = _CODE.split(text)
    outside = "\n".join(parts[::2])
    if is_chat_log(outside):
        return text
    is_marked = has_markup(outside)
    for index in range(0, len(parts), 2):
        part = parts[index]
        if is_marked and TAG.search(part):
            core = part.strip()
            lead, tail = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
            part = lead + _stripped(core, is_link_kept) + tail
        if is_entity_read and _ENTITY.search(part):
            part = _unescaped(part)
        parts[index] = part
    return "".join(parts)


def _markup(params: MarkupParams) -> RowRunner:
    def once(text: str) -> Rewritten:
        return rewritten(text, params.is_link_kept, params.is_entity_read), ("fix.html",)

    return rewriting(matching(GATE), each(once))


MARKUP = Step(
    "markup", 1, "Web markup", MarkupParams, _markup, 32,
    codes={"fix.html": "Web markup made plain text"},
    words=Words(
        "1 row contains web markup", "%(n)s rows contain web markup",
        "Tags and entities are learned like words. Code is left as it is; look at the rows before you apply it.",
        "Make it plain text", "braces",
    ),
    default="ask",
)  # fmt: skip
