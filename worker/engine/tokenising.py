"""Rows as tokens, made once for each version, tokenizer and template.

`begin` makes them in a process of its own (`python -m worker.engine.tokenising`, the order on standard input) while the
run's own process still loads its libraries: nothing here needs the tensor libraries.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from app.contracts.recipe import TrainOrder
from app.text.accelerated import SAMPLED_ROWS
from app.text.template import ChatTemplate
from worker.engine.data import Encode, TokenRows, count_rows, read_examples, tokenised
from worker.engine.encoding import Encoder, at_need
from worker.engine.tokenizer import END_OF_TEXT
from worker.engine.tokenizer_files import end_ids_of_files, load_chat_template, load_tokenizer, model_settings

# Fewer rows are encoded sooner than another way of encoding them is proved.
ACCELERATED_ROWS = 8_000
# Fewer rows are tokens before a process of their own has started.
ROWS_AHEAD = 2_000
SPLITS = ("train", "validation")
LONGEST_CONTEXT = 2**17

_under_way: dict[str, subprocess.Popen[bytes]] = {}  # by the run's folder


@dataclass(frozen=True)
class Tokenising:
    """How the rows of an order become tokens; rows over `limit` tokens are cut."""

    order: TrainOrder
    encoder: Encoder
    limit: int

    @property
    def is_of_pairs(self) -> bool:
        return self.order.recipe.learn_from == "preferences"

    def rows(self) -> tuple[TokenRows, TokenRows]:
        """The rows to learn from and those to validate with, made on first use and kept. Raises BadData."""
        order, encoder = self.order, self.encoder
        if order.out_dir in _under_way:
            _under_way.pop(order.out_dir).wait()
        data_dir = Path(order.data_dir)
        cache = Path(order.cache_dir) if order.cache_dir else Path(order.out_dir) / "tokens"
        key: dict[str, object] = {
            "tokenizer": hashlib.sha256(encoder.tokenizer.to_str().encode()).hexdigest(),
            "template": [encoder.template.source, encoder.template.special_tokens],
            "learn_prompts": encoder.learn_prompts,
            "system_prompt": encoder.system_prompt,
            "text_end": encoder.text_end_id,
        }
        encode = _encode(encoder, data_dir)
        train, validation = (
            tokenised(data_dir, split, cache, encode, key, self.limit, pairs=self.is_of_pairs) for split in SPLITS
        )
        return train, validation


def of(
    order: TrainOrder, tokenizer: Tokenizer, template: ChatTemplate, end_ids: Sequence[int], context_length: int | None
) -> Tokenising:
    """For a model with these end tokens (one at least) and this context."""
    recipe = order.recipe
    learn_prompts = recipe.learn_prompts and recipe.learn_from != "preferences"
    # A plain text ends with the end of text where the tokenizer has one, else with an end of turn.
    token = tokenizer.token_to_id(END_OF_TEXT)
    text_end = token if token is not None else end_ids[0]
    encoder = Encoder(tokenizer, template, text_end, learn_prompts, order.system_prompt)
    return Tokenising(order, encoder, min(recipe.max_length_tokens, context_length or LONGEST_CONTEXT))


def _encode(encoder: Encoder, data_dir: Path) -> Encode:
    """How rows become tokens: sooner, where there are many and rows from everywhere prove that it is the same."""
    rows = count_rows(data_dir)
    if rows < ACCELERATED_ROWS:
        return encoder.example
    return at_need(encoder, lambda: islice(read_examples(data_dir, "train"), 0, None, max(1, rows // SAMPLED_ROWS)))


def begin(order: TrainOrder) -> None:
    """Make the tokens of a base model's run beside this process, which `Tokenising.rows` then waits for.

    Whatever goes wrong there is met again, and told, by who asks for the rows.
    """
    if order.base is None or order.recipe.method == "scratch" or os.environ.get("RANK", "0") != "0":
        return
    if count_rows(Path(order.data_dir)) < ROWS_AHEAD:
        return
    command = [sys.executable, "-m", "worker.engine.tokenising", str(os.getpid())]
    nowhere = subprocess.DEVNULL
    with contextlib.suppress(OSError):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
        _under_way[order.out_dir] = child
        assert child.stdin
        with child.stdin:
            child.stdin.write(order.model_dump_json().encode())


def main() -> None:
    """Make what the order on standard input needs. Ends with an error where the run itself would."""
    from worker.engine.__main__ import die_with_parent

    die_with_parent(int(sys.argv[1]))
    order = TrainOrder.model_validate_json(sys.stdin.read())
    assert order.base
    folder = Path(order.base.base_dir)
    tokenizer = load_tokenizer(folder)
    template = load_chat_template(folder, tokenizer)
    ends = end_ids_of_files(tokenizer, folder)
    of(order, tokenizer, template, ends, model_settings(folder).get("max_position_embeddings")).rows()


if __name__ == "__main__":
    main()
