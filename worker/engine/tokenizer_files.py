"""Tokenizer, chat template and end tokens of a model folder; needs none of the tensor libraries."""

from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

from app.text.template import ChatTemplate, TemplateFault, load_template
from worker.engine.errors import BadData

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a model folder. Raises BadData when there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadData(
            f"The base model in {folder.name} has no tokenizer.json. Choose a base model with a fast tokenizer."
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template that goes with a tokenizer, ours where the folder has none."""
    try:
        return load_template(folder, tokenizer.get_vocab(with_added_tokens=True))
    except TemplateFault as fault:
        raise BadData(str(fault)) from fault


def tokenizer_settings(folder: Path) -> dict[str, object]:
    """tokenizer_config.json, empty when absent."""
    path = folder / "tokenizer_config.json"
    return orjson.loads(path.read_bytes()) if path.is_file() else {}


def with_end_token(found: list[int] | int | None, tokenizer: Tokenizer, folder: Path) -> list[int]:
    """The end tokens that a model's settings name, then the tokenizer's own."""
    ids = list(found) if isinstance(found, list) else [found] if found is not None else []
    token = tokenizer_settings(folder).get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    other = tokenizer.token_to_id(str(name)) if name else None
    return list(dict.fromkeys([*ids, *([other] if other is not None else [])]))


def end_ids_of_files(tokenizer: Tokenizer, folder: Path) -> list[int]:
    """The end tokens of a model that is not loaded, as its files name them."""
    return with_end_token(model_settings(folder).get("eos_token_id"), tokenizer, folder)


def model_settings(folder: Path) -> dict[str, Any]:
    """config.json with generation_config.json over it, empty when absent."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            found |= orjson.loads((folder / name).read_bytes())
    return found
