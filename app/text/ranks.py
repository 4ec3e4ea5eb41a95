"""What tiktoken needs of a byte-level BPE tokenizer: the cutting pattern, and each token's bytes with its rank."""

from itertools import pairwise
from typing import Any

from tokenizers import models, pre_tokenizers

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# As above between single digits: a digit ends a run of blanks like the end of the text does.
_DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def pattern_of(facts: dict[str, Any]) -> str:
    """The pattern that cuts text before merging; empty for one that is not known here."""
    normalizer, cutting = facts["normalizer"], facts["pre_tokenizer"] or {}
    if normalizer and normalizer["type"] != "NFC":
        return ""
    parts = cutting["pretokenizers"] if cutting.get("type") == "Sequence" else [cutting]
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return ""
    if len(parts) == 1:
        return _GPT2 if last["use_regex"] else ""
    first = parts[0]
    if len(parts) != 2:
        return ""
    if first["type"] == "Digits":
        return _DIGITS if first["individual_digits"] and last["use_regex"] else ""
    if first["type"] != "Split" or last["use_regex"] or first["invert"] or first["behavior"] != "Isolated":
        return ""
    return str(first["pattern"].get("Regex", ""))


def ranks_of(model: dict[str, Any]) -> dict[bytes, int] | None:
    """Bytes of each token that merging can make to its id; None when ids do not follow the order of merging."""
    if model["type"] != "BPE" or any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    ):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    byte_of = bytes_of_characters()
    if not set(byte_of) <= set(vocabulary):
        return None
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = list(dict.fromkeys(left + right for left, right in pairs))
    listed = [left + right for left, right in pairs]
    # Several ways to one token must stand side by side, or one rank cannot say when it is made.
    if len(made) != 1 + sum(a != b for a, b in pairwise(listed)) and listed:
        return None
    numbers = [vocabulary.get(token, -1) for token in made]
    if any(a >= b for a, b in pairwise(numbers)) or -1 in numbers:
        return None
    merging = models.BPE(vocabulary, [(left, right) for left, right in pairs])
    reached = [token for token in made if [t.value for t in merging.tokenize(token)] == [token]]
    if model.get("ignore_merges") and len(reached) < len(made):
        return None
    try:
        return {bytes(byte_of[c] for c in token): vocabulary[token] for token in (*byte_of, *reached)}
    except KeyError:
        return None


def bytes_of_characters() -> dict[str, int]:
    """The characters that byte-level BPE writes for the 256 bytes (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


def trims(facts: dict[str, Any]) -> bool:
    """Whether offsets leave out the blank before a word: then a token of blanks covers nothing and is not learned."""
    after = facts["post_processor"] or {}
    parts = after.get("processors", [after])
    return any(part.get("type") == "ByteLevel" and part["trim_offsets"] for part in parts)
