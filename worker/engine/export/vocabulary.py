"""A tokenizer in GGUF's words: byte-level BPE whose splitting rule llama.cpp knows by name, or a clear refusal."""

from dataclasses import dataclass
from typing import Any

import orjson
from tokenizers import Tokenizer

from worker.engine.errors import BadData

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# The splitting rule as tokenizers writes it, and llama.cpp's name for the same rule. The regular expressions are those
# that Llama 3 and Qwen 2 publish.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_ELSE = "Export the whole folder instead: transformers loads it as it is."


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF keeps of a tokenizer. `rule` is llama.cpp's name of the splitting rule; `kinds` are its token types."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    rule: str


def read(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary, filled up to the model's `size`. Raises BadData for a tokenizer that GGUF cannot carry."""
    settings = orjson.loads(tokenizer.to_str())
    model = settings["model"]
    if model["type"] == "WordLevel":
        raise BadData(f"This model reads single characters, and GGUF has no tokenizer for that. {_ELSE}")
    if model["type"] != "BPE" or settings["decoder"] is None or settings["decoder"]["type"] != "ByteLevel":
        raise BadData(f"GGUF is written here for byte-level BPE tokenizers; this one is {model['type']}. {_ELSE}")
    if settings["normalizer"] is not None and settings["normalizer"]["type"] != "NFC":
        raise BadData(f"This tokenizer rewrites text before it cuts it, which GGUF cannot carry. {_ELSE}")
    rule = _rule(settings["pre_tokenizer"])
    if rule is None:
        raise BadData(f"llama.cpp has no name for the way this tokenizer cuts text. {_ELSE}")
    added = tokenizer.get_added_tokens_decoder()
    known = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens, kinds = [], []
    for number in range(max(size, max(known) + 1)):
        if number in added:
            tokens.append(added[number].content)
            kinds.append(CONTROL if added[number].special else USER_DEFINED)
        else:
            tokens.append(known.get(number, f"[PAD{number}]"))
            kinds.append(NORMAL if number in known else UNUSED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if not merges:
        raise BadData(f"This tokenizer joins no characters, which llama.cpp cannot load. {_ELSE}")
    return Vocabulary(tokens[:size] if len(tokens) > size else tokens, kinds[:size], merges, rule)


def _rule(found: dict[str, Any] | None) -> str | None:
    """llama.cpp's name for the pre-tokenizer, None where it has none."""
    if found is None:
        return None
    steps: list[dict[str, Any]] = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    head, uses_regex = steps[:-1], steps[-1]["use_regex"]
    if not head:
        return "gpt-2" if uses_regex else None
    if len(head) > 1:
        return None
    if head[0]["type"] == "Digits" and head[0]["individual_digits"] and uses_regex:
        return "smollm"
    if head[0]["type"] == "Split" and head[0]["behavior"] == "Isolated" and not head[0]["invert"] and not uses_regex:
        return {LLAMA_3: "llama-bpe", QWEN_2: "qwen2"}.get(head[0]["pattern"].get("Regex", ""))
    return None
