"""Short checks beside a run's curve: how its newest steps look while it trains, how it went once it is over."""

from statistics import fmean

from app.core.numbers import counted
from app.core.numbers import loss as shown
from app.runs.coach import MIN_EVALUATIONS, near, spike
from app.runs.curves import Curves, smoothed

HealthRow = dict[str, str]


def health(curves: Curves, *, is_over: bool = False, is_broken: bool = False) -> list[HealthRow]:
    """Short checks beside the curve: state good, warn or wait, a sentence and its number.

    While it trains they look at the newest steps; once it is over, at the whole run and at its best look, which is
    what was kept: that both losses stood still at the end is how a good run ends.
    """
    rows = [check(curves) for check in (_WHOLE if is_over else _NEWEST)]
    if is_broken:
        rows[3] = {"state": "bad", "title": "The loss became invalid", "note": "Some steps gave no number"}
    return rows


def _wait(title: str, *, is_over: bool = False) -> HealthRow:
    return {"state": "wait", "title": title, "note": "Too few steps to tell" if is_over else "Not enough steps yet"}


def _train_row(curves: Curves) -> HealthRow:
    if len(curves.train) < 40:
        return _wait("Training loss")
    train = smoothed(curves.train)
    then, now = train[-max(20, len(train) // 4)], train[-1]
    note = f"{shown(then[1])} → {shown(now[1])} over the last {counted(now[0] - then[0], 'step')}"
    if now[1] < then[1]:
        return {"state": "good", "title": "Training loss is falling", "note": note}
    if now[1] > 1.1 * then[1]:
        return {"state": "warn", "title": "Training loss is rising", "note": note}
    return {"state": "warn", "title": "Training loss stands still", "note": note}


def _val_row(curves: Curves) -> HealthRow:
    if len(curves.val) < MIN_EVALUATIONS:
        return _wait("Validation loss")
    best_step, best = curves.best or curves.val[-1]
    now = curves.val[-1][1]
    looks = sum(1 for step, _ in curves.val if step > best_step)
    if looks >= 5 and now > best * 1.015:
        return {"state": "warn", "title": "Validation loss is rising", "note": f"Best was step {best_step:,}"}
    if now > best * 1.015:
        note = f"{shown(now)}, best {shown(best)} at step {best_step:,}"
        return {"state": "good", "title": "Validation loss is above its best", "note": note}
    return {"state": "good", "title": "Validation loss is falling", "note": f"{shown(now)}, best so far {shown(best)}"}


def _gap_row(curves: Curves) -> HealthRow:
    if len(curves.val) < MIN_EVALUATIONS or len(curves.train) < 40:
        return _wait("The two losses")
    train = smoothed(curves.train)
    gap = curves.val[-1][1] - train[-1][1]
    middle_step, middle = curves.val[len(curves.val) // 2]
    earlier = middle - near(train, middle_step)
    if gap > 0.3 and gap > 2 * max(earlier, 0.05):
        return {"state": "warn", "title": "The two losses drift apart", "note": f"Gap {gap:.2f}, growing"}
    if gap > 0.3 and gap > curves.val[-1][1] / 2:
        note = f"Gap {gap:.2f}: it knows its examples much better"
        return {"state": "warn", "title": "The two losses lie far apart", "note": note}
    return {"state": "good", "title": "The two losses agree", "note": f"Gap {gap:.2f}"}


def _steady_row(curves: Curves) -> HealthRow:
    if len(curves.train) < 60:
        return _wait("Steady learning")
    found = spike(curves, 0)
    if found is not None:
        return {"state": "warn", "title": found.title, "note": "It recovered by itself"}
    return {"state": "good", "title": "Steady learning", "note": "No spikes, no invalid numbers"}


def _train_over(curves: Curves) -> HealthRow:
    if len(curves.train) < 40:
        return _wait("Training loss", is_over=True)
    train = smoothed(curves.train)
    first, last = fmean(value for _, value in train[:5]), train[-1][1]
    note = f"{shown(first)} → {shown(last)} over the whole run"
    if last < first:
        return {"state": "good", "title": "Training loss fell", "note": note}
    return {"state": "warn", "title": "Training loss did not fall", "note": note}


def _val_over(curves: Curves) -> HealthRow:
    if len(curves.val) < MIN_EVALUATIONS:
        return _wait("Validation loss", is_over=True)
    (_, first), (step, best) = curves.val[0], curves.best or curves.val[0]
    if best >= first:
        return {"state": "warn", "title": "Validation loss never fell", "note": "Its first look was the best"}
    note = f"{shown(first)} → {shown(best)}, best at step {step:,}"
    return {"state": "good", "title": "Validation loss fell", "note": note}


def _gap_over(curves: Curves) -> HealthRow:
    if len(curves.val) < MIN_EVALUATIONS or len(curves.train) < 40:
        return _wait("The two losses", is_over=True)
    step, best = curves.best or curves.val[-1]
    gap = best - near(smoothed(curves.train), step)
    if gap > 0.3 and gap > best / 2:
        note = f"Gap {gap:.2f} at its best: it knows its examples much better"
        return {"state": "warn", "title": "The two losses lie far apart", "note": note}
    return {"state": "good", "title": "The two losses agree", "note": f"Gap {gap:.2f} at its best, step {step:,}"}


def _steady_over(curves: Curves) -> HealthRow:
    if len(curves.train) < 60:
        return _wait("Steady learning", is_over=True)
    return {**_steady_row(curves), "state": "good"}


_NEWEST = (_train_row, _val_row, _gap_row, _steady_row)
_WHOLE = (_train_over, _val_over, _gap_over, _steady_over)
