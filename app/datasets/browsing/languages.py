"""The language of each row, by pycld2 on its answer or text; nothing is said about texts under 20 letters."""

from typing import TYPE_CHECKING

import pyarrow as pa
import pycld2

if TYPE_CHECKING:
    from app.datasets.browsing.index import Texts

LEAST_BYTES = 20
LOOKED_AT = 400


class Languages:
    """ISO codes; empty where it cannot be told."""

    def of(self, texts: "Texts") -> pa.Array:
        """The code of each row of a batch."""
        found = []
        for first, second in zip(texts.first.to_pylist(), texts.second.to_pylist(), strict=True):
            found.append(language_of(f"{first}\n{second}" if second else first))
        return pa.array(found, pa.string())


def language_of(text: str) -> str:
    """The code of one text, such as “en”."""
    text = text[:LOOKED_AT]
    if len(text.encode("utf-8", "replace")) < LEAST_BYTES:
        return ""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    try:
        is_reliable, _bytes, details = pycld2.detect(text)
    except pycld2.error:
        return ""
    code = str(details[0][1])
    return code if is_reliable and code != "un" else ""
