"""The tokenizer of a model from scratch: byte-level BPE or single characters, and the files it is kept in."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from app.contracts.recipe import ScratchSpec
from worker.engine.errors import BadData

END_OF_TEXT, TURN_START, TURN_END, PAD, UNKNOWN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
    "<|unknown|>",
)
SPECIAL = [END_OF_TEXT, TURN_START, TURN_END, PAD]
MAX_TOKEN_LENGTH = 64
MAX_CHARACTERS = 20_000  # distinct ones: beyond this a character tokenizer makes no sense


def train(spec: ScratchSpec, texts: Iterable[str]) -> Tokenizer:
    """Learn a tokenizer from plain texts (no template in them). Raises BadData when they are empty."""
    return train_characters(texts) if spec.tokenizer == "characters" else train_bpe(texts, spec.vocabulary_size)


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Byte-level BPE: special tokens first, every byte known, each digit on its own, no token over 64 characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_characters(texts: Iterable[str]) -> Tokenizer:
    """One token a character, in code-point order after the special tokens; others become one unknown token."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise BadData("The training rows hold no text. Add rows with text, then start again.")
    if len(characters) > MAX_CHARACTERS:
        raise BadData(
            f"The text uses {len(characters)} different characters, too many for one token each. "
            "Choose the BPE tokenizer in the recipe."
        )
    tokens = [*SPECIAL, UNKNOWN, *sorted(characters)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL, UNKNOWN])
    return tokenizer


def batched(texts: Iterable[str], size: int = 20_000) -> Iterator[str]:
    """Cut long texts, so that the trainer's word count needs little memory."""
    for text in texts:
        for start in range(0, len(text), size):
            yield text[start : start + size]


def save(tokenizer: Tokenizer, folder: Path, *, chat_template: str, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
