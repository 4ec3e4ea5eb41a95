"""Near copies as a cleaning step: which rows go, which are no copies, what a page can say of other thresholds."""

import numpy as np
import pytest

from app.datasets.cleaning import MemoryStore, run, start
from app.datasets.steps.batches import of_examples
from app.datasets.steps.contract import ChosenStep
from app.datasets.steps.near import EDGES_FILE, counts, example_texts

LONG = (
    "My parcel from the shop in Leeds has been on its way for two weeks and nobody on the phone can say where it is now"
)


def chat(question: str, answer: str, label: str = "") -> dict:
    messages = [{"role": "system", "content": "You are a kind clerk. " * 40, "train": False}]
    messages += [{"role": "user", "content": question, "train": True}]
    messages += [{"role": "assistant", "content": answer, "train": True}]
    return {"kind": "chat", "messages": messages, "text": "", "label": label, "meta": {}}


def gone(examples: list[dict], **params) -> dict[int, int | None]:
    outcomes = run(ChosenStep(name="near", params=params), examples)
    return {row: outcome.of for row, outcome in enumerate(outcomes) if outcome.example is None}


def test_the_copy_that_stays_is_chosen():
    answer = "I am sorry about that. I have asked the driver and will write to you before the end of the day."
    rows = [chat(LONG, answer), chat("What do you sell?", "Tea."), chat(f"{LONG} please help me soon", answer)]
    assert gone(rows) == {2: 0}
    assert gone(rows, kept="longest") == {0: 2}
    outcomes = run(ChosenStep(name="near"), rows)
    assert outcomes[2].codes == ("out.near",)


def test_another_label_or_another_short_answer_is_no_copy():
    assert gone([chat(LONG, "parcel", "parcel"), chat(f"{LONG}!", "lost", "lost")]) == {}
    assert gone([chat(LONG, "Yes."), chat(f"{LONG}!", "No.")]) == {}
    assert gone([chat(LONG, "Yes."), chat(f"{LONG}!", "yes")]) == {1: 0}


def test_a_shared_system_prompt_makes_no_copies():
    assert gone([chat(f"question number {n} about {'abcdefghij'[n]}", "An answer.") for n in range(10)]) == {}
    batch = of_examples([chat("Hello", "Hi")])
    assert example_texts(batch).to_pylist() == ["Hello\nHi"]


@pytest.mark.parametrize("alive", [[True, True, True], [False, True, True]])
def test_thresholds_are_counted_from_the_kept_edges(tmp_path, alive):
    words = LONG.split()
    texts = [LONG, " ".join(words[:-1]), " ".join(words[:-4])]
    rows = [{"kind": "text", "messages": [], "text": t, "label": "", "meta": {}} for t in texts]
    batch = of_examples(rows, [10, 11, 12])
    runner = start(ChosenStep(name="near", params={"threshold": 0.95}))
    store = MemoryStore(batch, runner.look(batch), tmp_path)
    store.is_alive = np.array(alive)
    verdict = runner.decide(store)
    found, crowded = counts(tmp_path / "keep" / EDGES_FILE)
    assert crowded == []
    if alive[0]:
        # The rows share 23 of 24 shingles, 20 of 24, 20 of 23.
        assert verdict.removals[0].rows.tolist() == [1]
        assert verdict.removals[0].of.tolist() == [10]
        assert verdict.removals[0].score.tolist() == pytest.approx([23 / 24])
        assert found == {0.7: 2, 0.75: 2, 0.8: 2, 0.85: 1, 0.9: 1, 0.95: 1}
    else:
        assert not len(verdict.removals[0].rows), "a row that went earlier takes no other with it"
        assert found[0.7] == 1
