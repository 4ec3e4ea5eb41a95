"""Answers in a given form: which tokens may come next, by llguidance's grammars, for any tokenizer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer
from torch import Tensor

from app.contracts.generation import AnswerFormat
from worker.engine.errors import BadData
from worker.engine.vocabulary import vocabulary_of

# Between the parts of JSON: nothing, a blank, or a new line and some indentation. Without a bound, a weak model
# writes blanks for ever.
BLANKS = r"(\n? {0,8})"


class Guide:
    """Keeps one answer to its form. Not thread-safe."""

    def __init__(self, matcher: LLMatcher, end_ids: frozenset[int], special: list[int]) -> None:
        self._matcher, self._end_ids, self._special = matcher, end_ids, special

    def allowed(self, size: int) -> Tensor:
        """Which of `size` tokens may come next, (size,) bool; the end tokens where the answer may be over.

        Raises BadData when none may: then the model's tokens cannot write what the form asks.
        """
        with _refusing():
            known = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._check()
        tokens, may_end = known[:-1], known[-1]
        allowed = torch.zeros(size, dtype=torch.bool)
        count = min(size, len(tokens))
        allowed[:count] = tokens[:count]
        # Where no text token fits, the library lets markers through.
        allowed[[number for number in self._special if number < size]] = False
        for end in self._end_ids:
            allowed[end] = may_end
        if not allowed.any():
            raise BadData("This model's tokens cannot write an answer of the form that was asked for.")
        return allowed

    def take(self, token: int) -> None:
        """Go on after a token that was allowed."""
        with _refusing():
            self._matcher.consume_token(token)
        self._check()

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadData(f"The form of the answer could not be kept: {_first_line(self._matcher.get_error())}")


def guide(tokenizer: Tokenizer, end_ids: frozenset[int], form: AnswerFormat) -> Guide:
    """A guide for a new answer. Raises BadData with the library's reason when the form cannot be read."""
    special = sorted(vocabulary_of(tokenizer).special)
    return Guide(_matcher(tokenizer, form.model_dump_json()).deep_copy(), end_ids, special)


@lru_cache(maxsize=64)
def _matcher(tokenizer: Tokenizer, form: str) -> LLMatcher:
    with _refusing():
        matcher = LLMatcher(_tokens(tokenizer), _grammar(AnswerFormat.model_validate_json(form)), log_level=0)
    if matcher.is_error():
        raise BadData(f"The form of the answer cannot be read: {_first_line(matcher.get_error())}")
    return matcher


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the library throws into a refusal: its panics are no Exceptions, and would end the model thread."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BadData(f"The form of the answer cannot be read: {_first_line(str(error))}") from error


def _grammar(form: AnswerFormat) -> str:
    if form.kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in form.choices))
    if form.kind == "regex":
        return LLMatcher.grammar_from_regex(form.regex or "")
    schema = {"type": "object"} if form.kind == "json_object" else form.json_schema or {}
    return LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": True, "whitespace_pattern": BLANKS}
    )


class _Words:
    """A tokenizer as the library wants it; the last token, which no tokenizer has, stands for the end."""

    is_canonical = False
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = vocabulary_of(tokenizer)
        self._tokenizer = tokenizer
        self.tokens = [*vocabulary.tokens, b"<the end>"]
        self.eos_token_id = len(vocabulary.tokens)
        self.special_token_ids = [*sorted(vocabulary.special), self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, add_special_tokens=False).ids


@lru_cache(maxsize=8)
def _tokens(tokenizer: Tokenizer) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Words(tokenizer)))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]
