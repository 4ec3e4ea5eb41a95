"""The coach on curves whose truth is known: silent without evidence, right with it, and slow to change its mind."""

import math
import random
from collections.abc import Callable

import pytest

from app.runs import coach
from app.runs.curves import Curves, smoothed
from app.runs.health import health

Shape = Callable[[float], float]


def curves(steps: int, loss: Shape, val: Shape, every: int = 60, noise: float = 0.05) -> Curves:
    """Curves of a run: `loss` and `val` are functions of the step."""
    rng = random.Random(4)
    train = [(step, loss(step) + rng.gauss(0, noise)) for step in range(1, steps + 1)]
    return Curves(train, [(step, val(step)) for step in range(every, steps + 1, every)])


def falling(step: float) -> float:
    return 1.2 + 4 * math.exp(-step / 200) + 1.0 * math.exp(-step / 1500)


def judged(found: Curves, total: int = 4000) -> coach.Verdict:
    return coach.judge(found, total)


def test_it_says_nothing_before_there_is_evidence():
    for steps in (0, 1, 59, 200):
        verdict = judged(curves(steps, falling, falling))
        assert (verdict.finding, verdict.kind) == ("warming_up", "idle")
    assert all(row["state"] == "wait" for row in health(curves(30, falling, falling)))


def test_a_short_run_is_judged_by_its_evaluations():
    assert judged(curves(160, falling, falling, every=16), 160).finding == "learning"


def test_learning_names_both_numbers():
    verdict = judged(curves(1200, falling, falling))
    assert (verdict.finding, verdict.kind) == ("learning", "good")
    assert f"{falling(720):.2f}" in verdict.sentence
    assert f"{falling(1200):.2f}" in verdict.sentence
    assert verdict.evidence


def test_memorising_is_dated_from_the_best_evaluation():
    def val(step: float) -> float:
        return falling(step) + max(0.0, step - 1200) * 1.2e-3

    verdict = judged(curves(2100, falling, val, noise=0.01))
    assert verdict.finding == "memorising"
    best = min(range(60, 2101, 60), key=val)
    assert verdict.zone_from == best
    assert f"{best:,}" in verdict.title
    assert "stop_and_keep" in verdict.actions
    found = curves(2160, falling, val, noise=0.01)
    better = Curves(found.train, [*found.val[:-1], (2160, val(best) - 0.01)])
    assert judged(better).finding in ("learning", "wavering")  # one better look ends it; it does not wait for three


def test_it_does_not_flicker_when_a_finding_holds_for_one_look_only():
    found = curves(1500, falling, falling, noise=0.01)
    spoiled = Curves(found.train, [*found.val[:-1], (found.val[-1][0], found.val[-9][1] * 1.5)])
    assert coach._finding(spoiled, 4000).finding == "wavering"
    assert judged(found).finding == judged(spoiled).finding == "learning"


def test_losses_that_lie_far_apart_do_not_agree():
    steps = range(1, 401)
    train = [(step, 3 * math.exp(-step / 80) + 0.2) for step in steps]
    val = [(step, 3 * math.exp(-step / 80) + 1.3) for step in steps if step % 20 == 0]
    row = health(Curves(train, val))[2]
    assert (row["state"], row["title"]) == ("warn", "The two losses lie far apart")
    near = [(step, value - 1.0) for step, value in val]
    assert health(Curves(train, near))[2]["state"] == "good"


def test_looks_without_a_training_loss_are_too_little_to_judge():
    looks = [(step, 2.0) for step in range(20, 400, 20)]
    assert judged(Curves([], looks)).finding == "warming_up"


def test_a_loss_above_its_best_is_not_called_falling():
    found = curves(1500, falling, falling, noise=0.01)
    assert health(found)[1]["title"] == "Validation loss is falling"
    worse = Curves(found.train, [*found.val[:-1], (1500, 2 * found.val[-1][1])])
    row = health(worse)[1]
    assert (row["state"], row["title"]) == ("good", "Validation loss is above its best")
    assert f"best {found.val[-2][1]:.2f} at step {found.val[-2][0]:,}" in row["note"]


def test_a_run_that_is_over_is_told_whole_and_by_what_was_kept():
    def rising(step: float) -> float:
        return falling(min(step, 800)) + max(0.0, step - 800) / 1000

    found = curves(1500, lambda step: falling(min(step, 1000)), rising)
    assert [row["state"] for row in health(found)].count("warn") == 2
    over = health(found, is_over=True)
    assert {row["state"] for row in over} == {"good"}
    assert over[1]["title"] == "Validation loss fell"
    assert "best at step 780" in over[1]["note"]
    bad = health(curves(1500, rising, lambda step: 2 + step / 1000), is_over=True)
    assert (bad[1]["state"], bad[1]["title"]) == ("warn", "Validation loss never fell")
    assert health(found, is_over=True, is_broken=True)[3]["state"] == "bad"


def test_flat_needs_both_losses():
    assert judged(curves(1500, lambda s: 2.0, lambda s: 2.1, noise=0.001), 1500).finding == "flat"
    assert judged(curves(1500, falling, lambda s: 2.1, noise=0.001), 1500).finding != "flat"


def test_too_slow_in_the_first_tenth():
    verdict = judged(curves(600, lambda s: 7.0 - s * 1e-5, lambda s: 7.0 - s * 1e-5, noise=0.001), 4000)
    assert verdict.finding == "too_slow"
    assert verdict.actions == ("adjust",)


def test_diverging_is_bad_news_with_something_to_do():
    def loss(step: float) -> float:
        return falling(step) if step < 800 else falling(800) + (step - 800) * 0.004

    verdict = judged(curves(1400, loss, loss, noise=0.01))
    assert (verdict.finding, verdict.kind) == ("diverging", "bad")


# Training loss of the starter model, tuned by LoRA at a learning rate of 10, step by step as it was recorded.
RATE_TEN = [
    3.988, 10.955, 8.871, 7.396, 8.195, 8.714, 8.893, 9.26, 8.649, 8.47, 8.632, 8.691, 8.742, 9.125, 8.367, 8.491, 8.35,
    8.177, 7.963, 8.53, 8.152, 8.008, 7.944, 8.51, 8.524, 8.476, 8.348, 8.318, 8.318, 8.318,
]  # fmt: skip


def test_a_loss_that_runs_away_is_told_before_anything_else():
    train = list(enumerate(RATE_TEN, start=1))
    long = list(enumerate(RATE_TEN + RATE_TEN[-3:] * 60, start=1))
    assert judged(Curves(train[:9], []), 56).finding == "warming_up"
    for known in (
        Curves(train[:10], []),
        Curves(train, [(20, 8.248)]),
        Curves(long, [(step, 8.3) for step in range(20, 200, 20)]),
    ):
        verdict = judged(known, 56)
        assert (verdict.finding, verdict.kind) == ("diverging", "bad")
        assert "began at 3.99" in verdict.sentence
        assert "adjust" in verdict.actions
    # Step by step from 4 to 68, too; but not for rows that are only unlike one another.
    rising = [(step, 4 * 1.18**step) for step in range(1, 18)]
    assert judged(Curves(rising, []), 100).finding == "diverging"
    rng = random.Random(3)
    uneven = [(step, 3 - step / 50 + rng.gauss(0, 0.8)) for step in range(1, 60)]
    assert judged(Curves([(1, 1.4), *uneven[1:]], []), 400).finding == "warming_up"
    assert judged(curves(300, falling, falling, noise=0.4)).finding != "diverging"


def test_a_bump_that_recovered_needs_nothing():
    def loss(step: float) -> float:
        return falling(step) + (6 if 1140 <= step < 1146 else 0)

    row = health(curves(1200, loss, falling, noise=0.01))[3]
    assert row["title"].startswith("A bump at step 1,14")
    assert row["state"] == "warn"


def test_stalled_only_after_ten_times_the_usual_step_and_two_minutes():
    assert coach.stalled(100, 1.0, 600) is None
    assert coach.stalled(200, 60.0, 600) is None
    verdict = coach.stalled(240, 1.0, 600)
    assert verdict is not None
    assert "600" in verdict.sentence


@pytest.mark.parametrize(("loss", "options"), [(0.0, 1.0), (math.log(8.4), 8.4)])
def test_hesitates_between_e_to_the_loss(loss, options):
    assert coach.hesitates(loss) == pytest.approx(options)
    assert coach.hesitates(None) is None


def test_smoothing_starts_unbiased_and_follows():
    flat = smoothed([(i, 3.0) for i in range(200)])
    assert all(value == pytest.approx(3.0) for _, value in flat)
    steps = smoothed([(i, 0.0 if i < 100 else 1.0) for i in range(200)])
    assert steps[99][1] == 0.0
    assert steps[-1][1] > 0.99


def test_a_short_run_is_judged_after_a_third_of_it():
    assert judged(curves(48, falling, falling, every=12), 129).finding == "learning"
    assert judged(curves(36, falling, falling, every=12), 129).finding == "warming_up"
    assert "1 step and 0 looks" in judged(curves(1, falling, falling), 129).sentence


def test_a_preference_run_is_told_by_its_pairs():
    found = coach.of_preferences(judged(curves(1200, falling, falling)), 0.87, 0.42)
    assert "prefers the better answer in 87 %, by a margin of 0.42" in found.sentence
    assert "Guessing would be 50 %" in found.evidence[-1]
    early = judged(curves(10, falling, falling))
    assert coach.of_preferences(early, 0.87, 0.42) == early


def test_what_can_be_done_about_a_finding_is_offered_with_it():
    assert coach.stalled(400, 1.0, 20).actions == ("restart",)
    assert coach.starved({"gpu_idle_s": 400, "gpu_share": 0.2}).actions == ("change_recipe",)
    flat = judged(curves(1500, lambda _: 2.0, lambda _: 2.0, noise=0.0))
    assert (flat.finding, flat.actions) == ("flat", ("stop_and_keep", "add_rows"))
