"""Token ids to text as they come: whole characters only, and nothing that may still become a stop string."""

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextOut:
    """The text of one answer. `is_stopped` is set when one of `stop` was met; it and what follows are left out."""

    def __init__(self, tokenizer: Tokenizer, stop: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = [text for text in stop if text]
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """Text that is certain after this token; often empty."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        return self._released()

    def close(self) -> str:
        """What was held back, once the answer has ended."""
        text, self._held = self._held, ""
        return "" if self.is_stopped else text

    def _released(self) -> str:
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            text, self._held, self.is_stopped = self._held[: min(found)], "", True
            return text
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
