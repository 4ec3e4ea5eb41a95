"""The tokenizer that a new model would get, learned from a sample of the version's text and tried on a sentence."""

import threading
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from app.recipes import material

# Learning from so much text takes well under a second; the run itself learns from all of it.
_SAMPLE_CHARACTERS = 400_000
_SHOWN_CHARACTERS = 400
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class TokensPreview:
    """A text cut into tokens, as the pieces of text that they stand for, and what the tokenizer holds."""

    pieces: list[str]
    tokens: int
    characters: int
    vocabulary: int
    is_sample: bool

    @property
    def per_token(self) -> float:
        """Characters a token."""
        return self.characters / max(1, self.tokens)


def preview(version_id: str, kind: str, vocabulary_size: int, text: str = "") -> TokensPreview:
    """Cut `text`, or the beginning of the version's own, with a tokenizer of this kind ("bpe" or "characters")."""
    sample, is_sample = _sample(version_id)
    text = (text or sample)[:_SHOWN_CHARACTERS]
    if kind == "characters":
        return TokensPreview(list(text), len(text), len(text), len(set(sample)) + len(_SPECIAL) + 1, is_sample)
    with _one_at_a_time:
        tokenizer = _bpe(version_id, vocabulary_size)
    encoded = tokenizer.encode(text, add_special_tokens=False)
    pieces, end = [], 0
    for _, stop in encoded.offsets:
        # Bytes of one character share its place: it is shown once, with the token that ends it.
        pieces.append(text[end:stop])
        end = max(end, stop)
    return TokensPreview(
        [one for one in pieces if one], len(encoded.ids), len(text), tokenizer.get_vocab_size(), is_sample
    )


@lru_cache(maxsize=16)
def _sample(version_id: str) -> tuple[str, bool]:
    """Up to 400,000 characters of training text, and whether there is more."""
    texts: list[str] = []
    left = _SAMPLE_CHARACTERS
    for row in material._sampled_rows(version_id):
        for one in [message["content"] for message in row["messages"] or []] or [row["text"] or ""]:
            texts.append(one[:left])
            left -= len(texts[-1]) + 1
            if left <= 0:
                return "\n".join(texts), True
    return "\n".join(texts), False


@lru_cache(maxsize=16)
def _bpe(version_id: str, vocabulary_size: int) -> Tokenizer:
    return train(_sample(version_id)[0], vocabulary_size)


def train(text: str, vocabulary_size: int) -> Tokenizer:
    """Byte-level BPE with the engine's own settings: every byte known, each digit on its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator(
        (text[start : start + 20_000] for start in range(0, len(text), 20_000)),
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            special_tokens=_SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=64,
            show_progress=False,
        ),
    )
    return tokenizer
