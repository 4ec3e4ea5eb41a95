"""What the coach says about a run: one verdict with its evidence, or nothing before there is enough of it.

Pure functions of the curves. A finding must hold for three evaluations in a row before it replaces another one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any, Literal

from app.core.numbers import counted, percent
from app.core.numbers import loss as shown
from app.runs.curves import Curves, smoothed

Kind = Literal["idle", "good", "warn", "bad", "done"]
MIN_STEPS = 240
SHORT_STEPS = 30
MIN_EVALUATIONS = 4
_HOLD = 3
_LOOK_BACK = 12
_RUNAWAY_STEPS = 10


@dataclass(frozen=True)
class Verdict:
    """Two to five words, one or two sentences with the numbers that matter, what may be done, and how we know.

    `actions` are names that the page turns into buttons; `zone_from` is the first step of memorising.
    """

    finding: str
    kind: Kind
    title: str
    sentence: str
    evidence: list[str] = field(default_factory=list)
    actions: tuple[str, ...] = ()
    zone_from: int | None = None


def judge(curves: Curves, total_steps: int) -> Verdict:
    """The verdict after the newest evaluation, with hysteresis over the evaluations before it."""
    if (lost := runs_away(curves)) is not None:
        return lost
    steps = [step for step, _ in curves.val]
    if not _has_enough(curves, total_steps):
        return _warming_up(curves, total_steps)
    current: Verdict | None = None
    recent: list[Verdict] = []
    for step in steps[-_LOOK_BACK:]:
        past = curves.until(step)
        if not _has_enough(past, total_steps):
            continue
        found = _finding(past, total_steps)
        recent = [*recent, found] if recent and recent[-1].finding == found.finding else [found]
        # A better look than the one it is dated from ends memorising at once.
        is_refuted = current is not None and past.best is not None and past.best[0] > (current.zone_from or math.inf)
        if current is None or current.finding == found.finding or len(recent) >= _HOLD or is_refuted:
            current = found
    return current or _warming_up(curves, total_steps)


def _has_enough(curves: Curves, total_steps: int) -> bool:
    steps = curves.train[-1][0] if curves.train else 0
    return (
        steps > 0
        and len(curves.val) >= MIN_EVALUATIONS
        and (steps >= _enough_steps(total_steps) or len(curves.val) >= 2 * MIN_EVALUATIONS)
    )


def _enough_steps(total_steps: int) -> int:
    """A short run is judged after a third of it: later would be too late to be of use."""
    return min(MIN_STEPS, max(SHORT_STEPS, total_steps // 3)) if total_steps else MIN_STEPS


def _warming_up(curves: Curves, total_steps: int) -> Verdict:
    done = curves.train[-1][0] if curves.train else 0
    looks = len(curves.val)
    enough = _enough_steps(total_steps)
    sentence = f"Too early to judge: {counted(done, 'step')} and {counted(looks, 'look')} at unseen rows so far."
    evidence = [f"A verdict needs {enough:,} steps and {MIN_EVALUATIONS} looks, or {2 * MIN_EVALUATIONS} looks."]
    return Verdict("warming_up", "idle", "Warming up", sentence, evidence)


def _finding(curves: Curves, total_steps: int) -> Verdict:
    for check in (_diverging, _memorising, _flat, _too_slow, spike):
        found: Verdict | None = check(curves, total_steps)
        if found is not None:
            return found
    return _learning(curves)


def _learning(curves: Curves) -> Verdict:
    window = curves.val[-9:]
    (first_step, first), (last_step, last) = window[0], window[-1]
    best_step, best = curves.best or window[-1]
    evidence = [
        f"Validation loss at the last {len(window)} looks: " + ", ".join(shown(value) for _, value in window) + ".",
        f"Best so far: {shown(best)} at step {best_step:,}.",
    ]
    ago = counted(last_step - first_step, "step")
    if last < first:
        sentence = f"Validation loss fell from {shown(first)} to {shown(last)} in the last {ago}. Nothing to do."
        return Verdict("learning", "good", "Learning well", sentence, evidence)
    sentence = (
        f"Validation loss went from {shown(first)} to {shown(last)} in the last {ago}, "
        "which is within its usual ups and downs. Nothing to do yet."
    )
    return Verdict("wavering", "good", "Learning, with ups and downs", sentence, evidence)


def _memorising(curves: Curves, _total: int) -> Verdict | None:
    """Best at least five evaluations old, now at least 1.5 % worse, training loss still falling."""
    best = curves.best
    assert best is not None
    behind = [point for point in curves.val if point[0] > best[0]]
    if len(behind) < 5 or behind[-1][1] < best[1] * 1.015:
        return None
    train = smoothed(curves.train)
    before = near(train, best[0])
    now = train[-1][1]
    if now >= before:
        return None
    sentence = (
        "It keeps getting better on your examples but worse on rows it has never seen. More training won’t help. "
        f"The best checkpoint, from step {best[0]:,}, is already saved."
    )
    evidence = [
        f"Validation loss was lowest at step {best[0]:,} ({best[1]:.3f}) and is {behind[-1][1]:.3f} now, "
        f"{percent(behind[-1][1] / best[1] - 1, 1)} higher, {len(behind)} looks later.",
        f"Training loss fell from {before:.3f} to {now:.3f} over the same steps.",
    ]
    title = f"Memorising since step {best[0]:,}"
    return Verdict("memorising", "warn", title, sentence, evidence, ("stop_and_keep", "keep_going"), zone_from=best[0])


def _flat(curves: Curves, _total: int) -> Verdict | None:
    """Less than 0.3 % change over ten evaluations, in both losses."""
    window = curves.val[-11:]
    if len(window) < 11:
        return None
    values = [value for _, value in window]
    change = (max(values) - min(values)) / max(values)
    train = smoothed(curves.train)
    start, end = near(train, window[0][0]), train[-1][1]
    moved = abs(start - end) / max(start, 1e-9)
    if change >= 0.003 or moved >= 0.003:
        return None
    sentence = (
        "It has learned what these rows can teach. Stop and keep what you have, or add rows that say something new."
    )
    evidence = [
        f"Over the last ten looks validation loss moved by {percent(change, 2)}, training loss by {percent(moved, 2)}.",
        f"Both are near {values[-1]:.3f} and {end:.3f}.",
    ]
    return Verdict("flat", "warn", "Not improving any more", sentence, evidence, ("stop_and_keep", "add_rows"))


def _too_slow(curves: Curves, total_steps: int) -> Verdict | None:
    """Loss falls by less than 2 % in the first tenth of the run."""
    done = curves.train[-1][0]
    if not total_steps or not total_steps * 0.1 <= done <= total_steps * 0.3:
        return None
    train = smoothed(curves.train)
    first, last = fmean(value for _, value in curves.train[: max(3, len(curves.train) // 50)]), train[-1][1]
    if last < first * 0.98:
        return None
    sentence = (
        f"Training loss went from {first:.2f} to {last:.2f} in the first {counted(done, 'step')}. "
        "A higher learning rate usually helps."
    )
    fallen = percent(max(0.0, 1 - last / first), 1)
    evidence = [f"After {percent(done / total_steps)} of the run the loss has fallen by {fallen}."]
    return Verdict("too_slow", "warn", "Learning very slowly", sentence, evidence, ("adjust",))


def spike(curves: Curves, _total: int) -> Verdict | None:
    """Loss jumped by more than three standard deviations above its trend in the newest part, and came back."""
    train = curves.train
    if len(train) < 60:
        return None
    recent = train[-max(40, len(train) // 10) :]
    earlier = train[: -len(recent)][-200:]
    if len(earlier) < 20:
        return None
    level, spread = fmean(v for _, v in earlier), pstdev([v for _, v in earlier])
    step, worst = max(recent[:-5], key=lambda point: point[1])
    settled = fmean(value for _, value in recent[-5:])
    if worst <= level + max(6 * spread, 0.15 * level) or settled > level + spread:
        return None
    sentence = (
        f"Training loss jumped to {worst:.2f} and is back at {settled:.2f}. It recovered by itself. Nothing to do."
    )
    evidence = [f"Before it the loss was {level:.2f}, give or take {spread:.2f}."]
    return Verdict("spike", "good", f"A bump at step {step:,}", sentence, evidence)


def _diverging(curves: Curves, _total: int) -> Verdict | None:
    """Smoothed training loss rises over three windows in a row, clearly."""
    train = curves.train
    size = max(10, len(train) // 20)
    if len(train) < 5 * size:
        return None
    windows = [fmean(v for _, v in train[len(train) - (4 - i) * size : len(train) - (3 - i) * size]) for i in range(4)]
    rises = all(later > earlier for earlier, later in pairwise(windows))
    if not rises or windows[-1] < windows[0] * 1.1:
        return None
    step = train[-1][0]
    sentence = (
        f"Training loss rose from {windows[0]:.2f} to {windows[-1]:.2f}. The learning rate is probably too high: "
        "lower it, or stop and keep the best checkpoint."
    )
    evidence = ["Mean training loss of the last four stretches: " + ", ".join(f"{v:.2f}" for v in windows) + "."]
    return Verdict(
        "diverging", "bad", f"Getting worse at step {step:,}", sentence, evidence, ("adjust", "stop_and_keep")
    )


def runs_away(curves: Curves) -> Verdict | None:
    """Training loss well above both its lowest and where it began: worse than untrained, which needs no second look.

    Every further step does harm, so this is said as soon as ten steps show it, and wins over whatever else is found.
    """
    train = curves.train
    if len(train) < _RUNAWAY_STEPS:
        return None
    size = max(5, len(train) // 20)
    start, newest = train[0][1], [value for _, value in train[-size:]]
    now = fmean(newest)
    least = min(fmean(v for _, v in train[at : at + size]) for at in range(0, len(train) - size + 1, size))
    has_risen = now > 1.5 * least and now > 1.2 * start
    # One bad step can do it all: then the first loss alone tells, where the noise of the rows is no explanation.
    has_jumped = now > 1.8 * start and min(newest) > 1.3 * start and now - start > 4 * pstdev(newest)
    if not has_risen and not has_jumped:
        return None
    sentence = (
        f"Training loss began at {shown(start)} and is {shown(now)} now: the model knows less than before its first "
        "step. The learning rate is far too high. Lower it, or stop and start again with a lower one."
    )
    lowest = min(train, key=lambda point: point[1])
    evidence = [
        f"Mean training loss of the last {size} steps: {shown(now)}; the lowest was {shown(lowest[1])}, at step "
        f"{lowest[0]:,}."
    ]
    title = f"Getting worse since step {lowest[0]:,}"
    return Verdict("diverging", "bad", title, sentence, evidence, ("adjust", "stop_and_keep"))


def stalled(seconds: float, usual_step_s: float, kept_step: int | None) -> Verdict | None:
    """No step for ten times the usual time (and at least two minutes)."""
    if seconds < max(120.0, 10 * usual_step_s):
        return None
    minutes = round(seconds / 60)
    kept = f"step {kept_step:,}" if kept_step else "the beginning"
    sentence = f"If it does not come back by itself, it is restarted from {kept}. Nothing before that is lost."
    evidence = [f"A step usually takes {usual_step_s:.1f} s; the last one ended {minutes} minutes ago."]
    return Verdict("stalled", "bad", f"No progress for {minutes} minutes", sentence, evidence, ("restart",))


def starved(computer: Mapping[str, Any]) -> Verdict | None:
    """The graphics card was less than 40 % busy for five minutes on end."""
    idle_s = computer.get("gpu_idle_s", 0)
    if idle_s < 300:
        return None
    idle = 1 - computer["gpu_share"]
    sentence = (
        f"The graphics card idles {percent(idle)} of the time, so the run takes longer than it must. More rows at once "
        "give it more to do; other work on this machine may also keep it waiting."
    )
    evidence = [f"It has been less than 40 % busy for {round(idle_s / 60)} minutes."]
    return Verdict("starved", "warn", "The graphics card waits", sentence, evidence, ("change_recipe",))


def less_memory(step: int | None, said: str) -> Verdict:
    """Memory ran out and the run went on in less of it; `said` is the diary's sentence about how."""
    is_same = "changes the loss" not in said
    sentence = f"{said} " + (
        "The result is the same, about 20 % slower. Nothing to do." if is_same else "Nothing to do."
    )
    where = f" at step {step:,}" if step else ""
    title = "Made the batch smaller" if "at a time" in said else "Going on in less memory"
    return Verdict("memory", "warn", title, sentence, [f"The change is in the log{where}."])


def of_preferences(verdict: Verdict, accuracy: float | None, margin: float | None) -> Verdict:
    """The verdict on a run that learns from preferences, with what counts there: pairs told apart, and by how much."""
    if accuracy is None or verdict.finding in ("warming_up", "stalled", "starved", "memory"):
        return verdict
    told = f"Of the pairs that it has never seen it prefers the better answer in {round(100 * accuracy)} %"
    told += f", by a margin of {margin:.2f}." if margin is not None else "."
    sentence = verdict.sentence.replace("on rows it has never seen", "on pairs it has never seen")
    sentence = sentence.replace("what these rows can teach", "what these pairs can teach")
    evidence = [*verdict.evidence, "Guessing would be 50 %, with a margin of 0 and a loss of 0.69."]
    return replace(verdict, sentence=f"{sentence} {told}", evidence=evidence)


def hesitates(loss: float | None) -> float | None:
    """Among how many equally likely tokens it chooses: e to the power of the loss."""
    return math.exp(min(loss, 30.0)) if loss is not None else None


def near(series: Sequence[tuple[int, float]], step: int) -> float:
    """The value at the last point not after `step`."""
    value = series[0][1]
    for at, found in series:
        if at > step:
            break
        value = found
    return value
