"""The one door for words: `_("Run %(number)s", number=7)`. English is the source; a catalogue may replace it here."""

from typing import Any

from markupsafe import Markup, escape

from app.core.numbers import number


def gettext(text: str, /, **values: Any) -> str:
    """`text` with its values filled in. A Markup value keeps its markup; the rest is escaped."""
    if not values:
        return text
    if any(isinstance(value, Markup) for value in values.values()):
        return escape(text) % values
    return text % values


def ngettext(one: str, many: str, count: int, /, **values: Any) -> str:
    """`ngettext("%(n)s row", "%(n)s rows", 3)`: the count is formatted and given as `n`."""
    return gettext(one if count == 1 else many, n=number(count), **values)
