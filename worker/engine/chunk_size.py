"""How much of a prompt is read in a pass in which others speak, learned from the passes before."""

LEAST_CHUNK = 16
PAUSE = 1.2  # how many times the length of a step without a piece a piece may take


class ChunkSize:
    """How many tokens of a prompt to read beside answers that speak: as many as take about as long as they do."""

    def __init__(self) -> None:
        self._step_s = self._token_s = 0.0

    def tokens(self, most: int) -> int:
        """At most `most`, at least 16 or `most`."""
        if not (self._step_s and self._token_s):
            return most
        return int(max(min(LEAST_CHUNK, most), min(most, PAUSE * self._step_s / self._token_s)))

    def note(self, took_s: float, read: int, spoke: int) -> None:
        """Learn from a pass that took so long, read so many tokens, and in which so many answers spoke."""
        if not read:
            self._step_s = took_s if not self._step_s else 0.8 * self._step_s + 0.2 * took_s
        elif read >= LEAST_CHUNK:
            token_s = max(took_s - (self._step_s if spoke else 0), 0.1 * took_s) / read
            self._token_s = token_s if not self._token_s else 0.8 * self._token_s + 0.2 * token_s
