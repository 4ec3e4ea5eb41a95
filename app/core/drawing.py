"""Curves as SVG geometry, drawn by the server: at first paint, without scripts, and for printing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


def spark_path(values: Sequence[float], width: float = 120, height: float = 28, fill: bool = False) -> str:
    """The path of a small curve, `values` left to right; empty for fewer than two finite values.

    With `fill` it closes along the lower edge.
    """
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return ""
    thinned = thin(list(enumerate(finite)), 120)
    low, high = min(finite), max(finite)
    span, last = (high - low) or 1.0, len(finite) - 1
    points = [f"{x / last * width:.1f} {2 + (height - 4) * (1 - (value - low) / span):.1f}" for x, value in thinned]
    path = "M" + "L".join(points)
    return f"{path}L{width:g} {height:g}L0 {height:g}Z" if fill else path


def thin(points: Sequence[tuple[float, float]], buckets: int) -> list[tuple[float, float]]:
    """At most about 2 × `buckets` points: first, last, and the least and greatest of each bucket, in order."""
    if len(points) <= 2 * buckets:
        return list(points)
    kept: dict[int, tuple[float, float]] = {0: points[0], len(points) - 1: points[-1]}
    for bucket in range(buckets):
        start, end = bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets
        for index in (
            min(range(start, end), key=lambda i: points[i][1]),
            max(range(start, end), key=lambda i: points[i][1]),
        ):
            kept[index] = points[index]
    return [kept[index] for index in sorted(kept)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them (Heckbert's nice numbers, Graphics Gems, 1990)."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw), default=raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Curve:
    """Geometry of the learning curve in a 720 × 300 box. Empty paths where there is nothing to draw."""

    train: str
    val: str
    dots: list[tuple[float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best: tuple[float, float] | None
    zone: tuple[float, float] | None


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 300, 44, 10, 26


def curve(
    train: Sequence[tuple[float, float]], val: Sequence[tuple[float, float]], zone_from: float | None = None
) -> Curve:
    """Training and validation loss by step; the y-range leaves out the first tenth of the steps, which would rule it.

    `zone_from`: first step of the memorising zone, shaded to the right end.
    """
    train = [(x, y) for x, y in train if math.isfinite(y)]
    val = [(x, y) for x, y in val if math.isfinite(y)]
    steps = [x for x, _ in (*train, *val)]
    if not steps:
        return Curve("", "", [], [], [], None, None)
    x0, x1 = min(steps), max(steps)
    x1 = x1 if x1 > x0 else x0 + 1
    later = [y for x, y in (*train, *val) if x >= x0 + (x1 - x0) * 0.1] or [y for _, y in (*train, *val)]
    pad = (max(later) - min(later)) * 0.06 or 0.1
    y0, y1 = min(later) - pad, max(later) + pad

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 8)
        return round(across, 1), round(TOP + (1 - (y - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM), 1)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join("{} {}".format(*at(x, y)) for x, y in thin(points, 240)) if len(points) > 1 else ""

    lowest = min(val, key=lambda point: point[1]) if val else None
    return Curve(
        train=path(train),
        val=path(val),
        dots=[at(x, y) for x, y in thin(val, 40)],
        x_ticks=[(at(t, y0)[0], f"{t:,.0f}") for t in nice_ticks(x0, x1, 5) if t == int(t)],
        y_ticks=[(at(x0, t)[1], f"{t:g}") for t in nice_ticks(y0, y1, 5)],
        best=at(*lowest) if lowest else None,
        zone=(at(zone_from, y0)[0], WIDTH - 8 - at(zone_from, y0)[0]) if zone_from is not None else None,
    )
