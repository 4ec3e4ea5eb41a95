"""What two answers are compared by: case, punctuation and blanks do not count."""

import string
import unicodedata

_PUNCTUATION = str.maketrans({mark: " " for mark in string.punctuation})


def normalised(text: str) -> str:
    """Lower case, without punctuation and surplus blanks: what exact match compares."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return " ".join(folded.split())
