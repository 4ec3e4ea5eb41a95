"""The same token ids several times faster: tiktoken built from a byte-level BPE tokenizer, used only where it is proved
equal.

Two proofs. By construction: every merged token comes out of its own bytes whole, so merging by rank (tiktoken) and
merging by listed pairs (`tokenizers`) take the same way. By trial: hard texts and sampled rows give the same ids and
the same loss mask. What does not pass keeps `tokenizers`.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import orjson
import tiktoken
from tokenizers import Tokenizer

from app.contracts.conversation import Example
from app.text.ranks import pattern_of, ranks_of, trims
from app.text.template import ChatTemplate, Rendered
from app.text.tokens import encode_example, learned_span, marked_pieces, markers, puts_blank_first

SAMPLED_ROWS = 2_000
# Beyond this the pattern engine of tiktoken may give up; such texts go the plain way.
LONGEST_TEXT = 100_000
HARD_TEXTS = (
    "", " ", "  ", "\n", " \n ", "\t\tx", "a  b", "a   1", "1 2", "12345", "x1y22z333", " 1", "  12  34  ", "a\r\nb",
    "don't we'll I'VE they're 'sm 's", "“quoted” – ‘x’…", "naïve cafe\u0301", "Å ﬁ ½ Ⅷ ² ٣٤ ६७", "日本語の文、中国",
    "ภาษาไทย", "עברית 12", "العربية ١٢", "हिन्दी क्ष", "한국어", "👩\u200d👧 🇩🇪 ☃\ufe0f 👍🏽", "\u1680\u2003 \u3000x",
    "\u200b\ufeff\u00ad\u2028\u2029\u0085", "\x00\x07\x1f\x7f", "𝕬𝖇 𐍈 \U0010fffd", "<|im_start|>system\n<|im_end|>",
    "def f(x):\n    return x ** 2  # ok\n\n\n\tend", '{"a": [1, 2.50]}', "http://a.b/c?d=e&f=%20#g", "AAAA" * 60,
    "!?" * 60, " " * 300, "\n" * 300, "a" * 1000,
)  # fmt: skip


class Accelerator:
    """Ids of ordinary text by tiktoken. Make it with `proved`."""

    def __init__(self, tokenizer: Tokenizer, pattern: str, ranks: dict[bytes, int], facts: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self._encoding = tiktoken.Encoding("built", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._must_be_nfc = bool(facts["normalizer"])
        # Tokens that count as text wherever they are typed: rare, so their rows go the plain way.
        typed = [token["content"] for token in facts["added_tokens"] if not token["special"]]
        self._typed = re.compile("|".join(map(re.escape, typed))) if typed else None
        self._bytes = {number: len(raw) for raw, number in ranks.items()}

    def is_plain(self, text: str) -> bool:
        """Whether this text must go the plain way."""
        if len(text) > LONGEST_TEXT:
            return True
        if self._must_be_nfc and not text.isascii() and not unicodedata.is_normalized("NFC", text):
            return True
        return self._typed is not None and self._typed.search(text) is not None

    def ids(self, text: str) -> list[int]:
        """Ids of ordinary text, in which typed markers are text."""
        if self.is_plain(text):
            self.tokenizer.encode_special_tokens = True
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return self._encoding.encode_ordinary(text)

    def example(
        self, template: ChatTemplate, example: Example, learn_prompts: bool = False, end_id: int | None = None
    ) -> tuple[list[int], list[bool]]:
        """As `tokens.encode_example`. Raises TemplateFault as it does."""
        if example.kind == "text":
            ids = self.ids(example.text)
            if end_id is not None:
                ids.append(end_id)
            return ids, [True] * len(ids)
        rendered = template.rendered(example.messages)
        if not self.is_plain(rendered.text):
            found = self._conversation(template, example, rendered, learn_prompts)
            if found is not None:
                return found
        return encode_example(self.tokenizer, template, example, learn_prompts, end_id)

    def _conversation(
        self, template: ChatTemplate, example: Example, rendered: Rendered, learn_prompts: bool
    ) -> tuple[list[int], list[bool]] | None:
        pieces = list(marked_pieces(self.tokenizer, rendered))
        signs = [(start, end) for start, end, marker in pieces if marker is not None]
        learned = [
            learned_span(template, example.messages, number, rendered, signs, [True] * len(signs))
            for number, message in enumerate(example.messages)
            if message.role == "assistant" and message.train and not learn_prompts
        ]
        ids: list[int] = []
        learn: list[bool] = []
        for start, end, marker in pieces:
            mine = [span for span in learned if span[0] < end and span[1] > start]
            if marker is not None:
                ids.append(marker)
                learn.append(learn_prompts or any(a <= start and end <= b for a, b in mine))
                continue
            made = self._encoding.encode_ordinary(rendered.text[start:end])
            ids.extend(made)
            if learn_prompts or not mine:
                learn.extend([learn_prompts] * len(made))
                continue
            if len(mine) > 1 or mine[0][1] < end:
                # An answer that ends inside a piece: templates without a marker behind it.
                return None
            skipped = self._before(made, rendered.text[start : max(start, mine[0][0])])
            learn.extend([False] * skipped + [True] * (len(made) - skipped))
        return ids, learn

    def _before(self, ids: list[int], text: str) -> int:
        """How many of the tokens begin before the end of `text`, which begins with them."""
        wanted, position = len(text.encode()), 0
        for at, number in enumerate(ids):
            if position >= wanted:
                return at
            position += self._bytes[number]
        return len(ids)


def _code_points() -> Iterable[str]:
    """Every seventh character, beside a letter, a digit and a blank: the two engines may know different Unicode."""
    numbers = [n for n in range(0x80, 0x20000, 7) if not 0xD800 <= n < 0xE000]
    for start in range(0, len(numbers), 500):
        yield "".join(f"x{chr(n)}1 {chr(n)}" for n in numbers[start : start + 500])


def built(tokenizer: Tokenizer) -> Accelerator | None:
    """From the vocabulary and the merges; None for any tokenizer whose equality cannot be shown."""
    facts = orjson.loads(tokenizer.to_str())
    pattern = pattern_of(facts)
    ranks = ranks_of(facts["model"]) if pattern else None
    if not pattern or ranks is None or trims(facts) or puts_blank_first(tokenizer):
        return None
    return Accelerator(tokenizer, pattern, ranks, facts)


def proved(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    samples: Iterable[Example],
    learn_prompts: bool = False,
    end_id: int | None = None,
) -> Accelerator | None:
    """An accelerator that gave the same ids and masks on hard texts and on the sampled rows; else None."""
    made = built(tokenizer)
    if made is None:
        return None
    tokenizer.encode_special_tokens = True
    # The markers typed between words: where a careless reading would see a sign of the template.
    typed = (f"x{marker} y" for marker in markers(tokenizer))
    for text in (*HARD_TEXTS, *typed, *_code_points()):
        if made.ids(text) != tokenizer.encode(text, add_special_tokens=False).ids:
            return None
    for example in samples:
        try:
            expected = encode_example(tokenizer, template, example, learn_prompts, end_id)
        except ValueError:
            continue
        if made.example(template, example, learn_prompts, end_id) != expected:
            return None
    return made
