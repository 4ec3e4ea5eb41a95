"""The one renderer of text that people or models wrote: Markdown to safe HTML, block by block.

No raw HTML, no images, no links but https and mailto (an image could carry a conversation out through its address).
"""

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_TAGS = {
    "p", "br", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6",
    "hr", "table", "thead", "tbody", "tr", "th", "td", "a", "span", "div",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"},
    "span": {"class"},
    "code": {"class"},
    "div": {"class"},
    "ol": {"start"},
    "th": {"class"},
    "td": {"class"},
}
_UNSEEN = re.compile("[\u200b\u202a-\u202e\u2066-\u2069\ufeff]")
_HIGHLIGHT_LIMIT = 20_000
_FORMATTER = HtmlFormatter(nowrap=True, classprefix="hl-")


def _code(content: str, language: str, _attributes: str) -> str:
    if language and len(content) <= _HIGHLIGHT_LIMIT:
        try:
            return str(highlight(content, get_lexer_by_name(language), _FORMATTER))
        except ClassNotFound:
            pass
    return str(escape(content))


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "highlight": _code}).enable(
        ["table", "strikethrough"]
    )
    parser.disable("image")
    parser.core.ruler.push("fitted", _fitted)
    return parser


def _fitted(state: StateCore) -> None:
    """The page's own headings come first, and a model may skip levels: every heading of a text is an h3. Where a column
    of a table stands is a class: pages allow no styles inside."""
    for token in state.tokens:
        if token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", "")):
            token.attrs["class"] = str(style).replace("text-align:", "at-")
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h3"


def _clean(html: str) -> Markup:
    return Markup(  # noqa: S704 - cleaned on this very line
        nh3.clean(
            html,
            tags=_TAGS,
            attributes=_ATTRIBUTES,
            url_schemes={"https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )


def render(text: str) -> Markup:
    """The whole text as safe HTML."""
    return _clean(_parser().render(text))


def blocks(text: str, first_line: int = 0) -> list[tuple[int, Markup]]:
    """Top-level blocks from `first_line` on as (line where it starts, safe HTML).

    While text grows, only the last block can still change: render from its line and leave the earlier ones alone.
    Cutting at top-level blocks, not at blank lines, keeps numbered lists whole.
    """
    lines = text.split("\n")
    rest = "\n".join(lines[first_line:])
    parser = _parser()
    env: dict[str, object] = {}
    found: list[tuple[int, Markup]] = []
    group: list[Token] = []
    for token in parser.parse(rest, env):
        group.append(token)
        if token.level == 0 and token.nesting <= 0:
            start = next((t.map[0] for t in group if t.map), 0)
            found.append((first_line + start, _clean(parser.renderer.render(group, parser.options, env))))
            group = []
    return found


def one_line(text: str) -> str:
    """A title as it may stand among other text: one line, and no marks that are unseen or turn what follows around."""
    return " ".join(_UNSEEN.sub("", text).split())


def plain(text: str, limit: int = 80) -> str:
    """The first words of a text without its marks, for titles."""
    words = one_line(re.sub(r"[#*_`>|\[\]]+", " ", text))
    return words if len(words) <= limit else words[: limit - 1].rsplit(" ", 1)[0] + "…"
