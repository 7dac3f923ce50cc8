"""The report's curves: every value at its place, and axes that can be read."""

from __future__ import annotations

import pytest

from finetune_trainer.outputs.charts import Curve, draw, histogram, smoothed
from finetune_trainer.outputs.summary import Point


def points(*values: float) -> tuple[Point, ...]:
    return tuple(Point(step=step, value=value) for step, value in enumerate(values))


def test_a_curve_falls_from_left_to_right_inside_its_box() -> None:
    chart = draw([Curve("held-out", "held-out", points(3.0, 2.0, 1.5), dotted=True)], mark=2)
    assert chart is not None
    dots = chart.lines[0].dots

    assert [dot.x for dot in dots] == sorted(dot.x for dot in dots)
    assert [dot.y for dot in dots] == sorted(dot.y for dot in dots)  # down the page is down
    assert all(chart.left <= dot.x <= chart.right and chart.top <= dot.y <= chart.bottom for dot in dots)
    assert chart.mark is not None
    assert chart.mark.at == dots[-1].x


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((2.6, 0.7), ["1", "1.5", "2", "2.5"]),
        ((0.034, 0.031), ["0.031", "0.0315", "0.032", "0.0325", "0.033", "0.0335", "0.034"]),
        ((5.0, 5.0), ["4.7", "4.8", "4.9", "5", "5.1", "5.2"]),
    ],
    ids=["usual", "small", "all the same"],
)
def test_the_axis_has_round_numbers(values: tuple[float, ...], labels: list[str]) -> None:
    chart = draw([Curve("training", "training", points(*values))])
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == labels


def test_steps_are_whole() -> None:
    chart = draw([Curve("training", "training", points(1.0, 2.0, 3.0))])
    assert chart is not None
    assert [tick.label for tick in chart.x_ticks] == ["0", "1", "2"]


def test_nothing_measured_is_no_chart() -> None:
    assert draw([Curve("training", "training", ())]) is None


def test_the_average_begins_at_the_first_value_and_follows_slowly() -> None:
    found = [point.value for point in smoothed(points(*[4.0] * 50, *[0.0] * 50))]

    assert found[:50] == pytest.approx([4.0] * 50)
    assert 3.0 > found[50] > found[55] > 0.0
    assert found[-1] < 0.01


def test_buckets_stand_by_their_length() -> None:
    bars = histogram({"1024+": 1, "0-127": 4, "128-1023": 2})

    assert [bar.label for bar in bars] == ["0-127", "128-1023", "1024+"]
    assert [bars[0].height / bar.height for bar in bars] == pytest.approx([1, 2, 4], rel=0.01)
