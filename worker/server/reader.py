"""All of a model but its weights: what turns messages into ids and ids into text where another engine computes."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig

from app.contracts.recipe import ModelFiles
from app.text.limited import limited
from app.text.template import ChatTemplate, load_template
from worker.engine.generate import tokenizer_folder
from worker.engine.tokenizer_files import load_tokenizer, with_end_token


@dataclass(frozen=True, eq=False)
class Reader:
    """As `Loaded`, without weights. `context_length` counts prompt and answer together, in tokens."""

    tokenizer: Tokenizer
    template: ChatTemplate
    end_ids: frozenset[int]
    context_length: int
    vocabulary_size: int


def read(files: ModelFiles) -> Reader:
    """Read the settings, tokenizer and template of a model. Raises BadData, TemplateFault and OSError."""
    folder, base = tokenizer_folder(files), Path(files.base_dir)
    config = AutoConfig.from_pretrained(base).get_text_config()
    try:
        settings = GenerationConfig.from_pretrained(base)
    except OSError:
        settings = GenerationConfig.from_model_config(config)
    tokenizer = load_tokenizer(folder)
    return Reader(
        tokenizer=tokenizer,
        template=limited(load_template(folder, tokenizer.get_vocab())),
        end_ids=frozenset(with_end_token(settings.eos_token_id, tokenizer, folder)),
        context_length=getattr(config, "max_position_embeddings", None) or 2048,
        vocabulary_size=config.vocab_size,
    )
