"""Curves as SVG geometry."""

import math
import re

from app.core import drawing


def heights(path: str) -> list[float]:
    return [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_falling_loss_falls_on_the_page() -> None:
    ys = heights(drawing.spark_path([3, 2, 1]))
    # SVG counts downwards: a lower loss stands lower on the page.
    assert ys == sorted(ys)
    assert ys[0] < ys[-1]


def test_too_little_draws_nothing_and_invalid_values_are_left_out() -> None:
    assert drawing.spark_path([]) == drawing.spark_path([1.0]) == ""
    assert "nan" not in drawing.spark_path([3, math.nan, 1, math.inf, 2])


def test_thinning_keeps_ends_and_extremes_in_order() -> None:
    points = [(float(i), math.sin(i)) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    kept = drawing.thin(points, 50)
    assert len(kept) <= 2 * 50 + 2
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert (4321.0, 99.0) in kept
    assert kept == sorted(kept)


def test_ticks_are_round_and_inside() -> None:
    assert drawing.nice_ticks(1.43, 3.31, 5) == [1.5, 2.0, 2.5, 3.0]
    assert drawing.nice_ticks(0, 1000, 5) == [0, 200, 400, 600, 800, 1000]
    assert drawing.nice_ticks(2, 2) == [2]


def test_the_curve_marks_its_best_point_and_leaves_the_first_tenth_out_of_the_range() -> None:
    val = [(float(s), 1 + abs(s - 600) / 1000) for s in range(100, 1001, 100)]
    drawn = drawing.curve([(float(s), 50.0 if s < 50 else 2.0) for s in range(1, 1001)], val, zone_from=700)
    assert drawn.best == drawn.dots[5]
    # Fifty is far above the range: it is drawn outside of the box instead of pressing the rest flat.
    assert max(float(text) for _, text in drawn.y_ticks) < 5
    assert drawn.zone is not None
    assert 0 < drawn.zone[1] < drawing.WIDTH / 2


def test_an_empty_run_draws_nothing() -> None:
    assert drawing.curve([], []) == drawing.Curve("", "", [], [], [], None, None)
