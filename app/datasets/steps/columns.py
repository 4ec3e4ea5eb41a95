"""Texts as a column for vector tests: a test in Rust picks rows, Python looks only at those."""

from collections.abc import Sequence

import polars as pl


def column_of(texts: Sequence[str] | pl.Series) -> pl.Series:
    """The texts as a polars column. Lone surrogates, which it cannot hold, are shown as `?`; places stay the same."""
    if isinstance(texts, pl.Series):
        return texts
    try:
        return pl.Series(texts, dtype=pl.String)
    except (UnicodeEncodeError, pl.exceptions.PolarsError):
        return pl.Series([text.encode("utf-8", "replace").decode() for text in texts], dtype=pl.String)
