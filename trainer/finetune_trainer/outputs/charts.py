"""Curves and bars as coordinates for SVG: the report draws them without a library and without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_trainer.outputs.summary import Point

_Scale = Callable[[float], float]

WIDTH, HEIGHT = 860.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 16.0, 30.0
_TICKS = 5
_ROOM = 0.06
"""Share of the height that stays free above and below the curves."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One measured value that can be pointed at."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One curve as SVG wants it; its class says how it looks."""

    name: str
    kind: str
    points: str
    """Coordinates: "x,y x,y"."""
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """One mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on common axes."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    mark: Tick | None = None
    """A step that stands out: the one whose weights are exported."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True)
class Curve:
    """What is to be drawn."""

    name: str
    kind: str
    points: Sequence[Point]
    dotted: bool = False
    """Whether each value gets a dot: for few, far apart."""


def draw(curves: Sequence[Curve], *, mark: int | None = None) -> Chart | None:
    """Return a chart of curves on common axes; None without points."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return None
    last = max(point.step for point in points) or 1
    low, high = min(point.value for point in points), max(point.value for point in points)
    room = ((high - low) or abs(high) or 1.0) * _ROOM
    low, high = (0.0 if 0 <= low < room else low - room), high + room

    def x(step: float) -> float:
        return round(_LEFT + step / last * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    return Chart(
        lines=tuple(_line(curve, x=x, y=y) for curve in curves if curve.points),
        x_ticks=tuple(Tick(x(step), f"{step:g}") for step in _round_numbers(0, last, whole=True)),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in _round_numbers(low, high)),
        mark=Tick(x(mark), f"step {mark}") if mark is not None and mark <= last else None,
    )


def smoothed(points: Sequence[Point], *, over: int = 25) -> tuple[Point, ...]:
    """Return an exponential moving average over about that share of the curve, without a bias at its beginning."""
    weight = 2 / (max(2.0, len(points) / over) + 1)
    average, seen, found = 0.0, 0.0, []
    for point in points:
        average = (1 - weight) * average + weight * point.value
        seen = (1 - weight) * seen + weight
        found.append(Point(step=point.step, value=average / seen))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Bar:
    """One column of a histogram."""

    x: float
    width: float
    y: float
    height: float
    label: str
    count: int


def histogram(counts: dict[str, int]) -> tuple[Bar, ...]:
    """Return columns for counts by bucket ("0-127", "4096+"), shortest first, in a box of WIDTH x 160."""
    ordered = sorted(counts.items(), key=lambda item: int(item[0].split("-")[0].rstrip("+")))
    largest = max(counts.values(), default=0) or 1
    step = WIDTH / max(len(ordered), 1)
    return tuple(
        Bar(
            x=round(index * step + step * 0.1, 1),
            width=round(step * 0.8, 1),
            y=round(140 - (size := 115 * count / largest), 1),
            height=round(max(size, 1.0), 1),
            label=bucket,
            count=count,
        )
        for index, (bucket, count) in enumerate(ordered)
    )


def _line(curve: Curve, *, x: _Scale, y: _Scale) -> Line:
    places = [(x(point.step), y(point.value)) for point in curve.points]
    dots = [
        Dot(*place, f"step {point.step}: {point.value:.4g}") for place, point in zip(places, curve.points, strict=True)
    ]
    return Line(
        name=curve.name,
        kind=curve.kind,
        points=" ".join(f"{across},{down}" for across, down in places),
        dots=tuple(dots) if curve.dotted else (),
    )


def _round_numbers(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about _TICKS numbers between the two that are easy to read: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]
