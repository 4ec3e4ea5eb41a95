"""The bytes behind each token id: for log-probabilities that are told, and for grammars that tokens must follow."""

import re
from functools import lru_cache
from typing import Any

import orjson
from tokenizers import Tokenizer

from app.text.ranks import bytes_of_characters

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Bytes by token id. `special` are the markers and unused ids, which stand for no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        facts = orjson.loads(tokenizer.to_str())
        added = {number: token.special for number, token in tokenizer.get_added_tokens_decoder().items()}
        in_bytes, blank = _is_in_bytes(facts), _blank(facts)
        table = bytes_of_characters()
        size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.tokens = [b""] * size
        self.special = {number for number, is_special in added.items() if is_special}
        for text, number in tokenizer.get_vocab(with_added_tokens=True).items():
            byte = _BYTE.fullmatch(text)
            if number in added:
                self.tokens[number] = text.encode()
            elif in_bytes:
                self.tokens[number] = b"".join(bytes([table[c]]) if c in table else c.encode() for c in text)
            elif byte and blank:
                self.tokens[number] = bytes([int(byte[1], 16)])
            else:
                self.tokens[number] = (text.replace(blank, " ") if blank else text).encode()

        texts = (len(text) for number, text in enumerate(self.tokens) if number not in self.special)
        self.longest = max(texts, default=1)
        """Bytes of the longest token that stands for text."""

    def bytes_of(self, number: int) -> bytes:
        """The bytes of a token; none for an id that the tokenizer does not know (a padded embedding)."""
        return self.tokens[number] if 0 <= number < len(self.tokens) else b""


@lru_cache(maxsize=8)
def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a loaded tokenizer, made once."""
    return Vocabulary(tokenizer)


def _parts(facts: dict[str, Any], name: str, inner: str) -> list[dict[str, Any]]:
    """A part of a tokenizer's file, flat."""
    part = facts.get(name)
    if not part:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _is_in_bytes(facts: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(facts, "decoder", "decoders"))


def _blank(facts: dict[str, Any]) -> str:
    """The character that stands for a blank (SentencePiece's); empty when blanks are themselves."""
    for part in _parts(facts, "decoder", "decoders"):
        if part["type"] == "Metaspace":
            return str(part["replacement"])
        if part["type"] == "Replace" and part["content"] == " ":
            return str(part["pattern"].get("String", ""))
    return ""
