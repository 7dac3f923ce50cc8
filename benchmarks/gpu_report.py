"""What `benchmarks.gpu` writes: its results as JSON, as tables, and as a chart."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.gpu_cases import CASES, OURS, SHAPES, SMOKE_CASE, Case, flops_a_token
from benchmarks.gpu_split import KINDS

Found = dict[str, Any]
_WIDTH, _BAR, _GAP, _LEFT, _HEAD = 760, 16, 18, 250, 30
_COLOURS = {OURS: "#1f6feb"}
_PEER = "#8b949e"


def write_report(report: Found, folder: Path) -> None:
    """Write all three."""
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "gpu.md").write_text(tables(report))
    (folder / "gpu.svg").write_text(chart(report["results"], title=f"LoRA r = 16, one {report['device']}"))


def by_case(results: list[Found]) -> list[tuple[Case, list[Found]]]:
    """Return the results of each case in the cases' order; ours first, then the fastest."""
    cases = {case.name: case for case in (*CASES, SMOKE_CASE)}
    order = list(cases)
    rows = sorted(
        results, key=lambda one: (order.index(one["case"]), one["who"] != OURS, -one.get("tokens_per_second", 0))
    )
    return [(cases[name], list(each)) for name, each in groupby(rows, key=lambda one: one["case"])]


def tables(report: Found) -> str:
    """Return the table of all sides, and that of where a step's time goes, in Markdown."""
    lines = [
        "| case | who | tokens/s | ours is faster by | peak GB | start s | timed steps | spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, rows in by_case(report["results"]):
        own = next((one.get("tokens_per_second") for one in rows if one["who"] == OURS), None)
        lines += [_row(case, one, own) for one in rows]
    return "\n".join([*lines, "", *_splits(report["results"])]) + "\n"


def _row(case: Case, one: Found, own: float | None) -> str:
    if "error" in one:
        return f"| {case.name} | {one['label']} | {one['error']} | | | | | |"
    speed = one["tokens_per_second"]
    times = "" if one["who"] == OURS or not own else f"{own / speed:.2f} x"
    cells = (case.name, one["label"], f"{speed:,.0f}", times, one["peak_gb"], one["start_s"], one["repeats"],
             f"{one['spread']:.1%}")  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _splits(results: list[Found]) -> list[str]:
    lines = [
        f"| case | who | {' | '.join(KINDS)} | kernels | TFLOP/s of the model's own work |",
        f"|---|---|{'---|' * (len(KINDS) + 2)}",
    ]
    for case, rows in by_case(results):
        for one in rows:
            if split := one.get("split_ms"):
                counted = 0.5 if case.data.instructions else 1.0
                flops = flops_a_token(SHAPES[case.shape], length=case.data.longest, counted=counted)
                cells = [case.name, one["label"], *(split[kind] for kind in KINDS), split["kernels"],
                         f"{flops * one['tokens_per_second'] / 1e12:.0f}"]  # fmt: skip
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return ["Where a step's time goes, ms (`host`: no kernel ran):", "", *lines]


def chart(results: list[Found], *, title: str) -> str:
    """Return a bar chart of tokens a second as SVG, readable on light and dark pages."""
    groups = [
        (case, bars) for case, rows in by_case(results) if (bars := [one for one in rows if "tokens_per_second" in one])
    ]
    most = max((one["tokens_per_second"] for _, rows in groups for one in rows), default=1.0)
    y, parts = _HEAD, [_text(0, 16, f"Tokens a second, {title}", weight="bold")]
    for case, rows in groups:
        y += _GAP
        parts.append(_text(0, y, case.name, weight="bold"))
        y += 6
        for one in rows:
            parts += _bar(one, y, most)
            y += _BAR + 4
    size = f'width="{_WIDTH}" height="{y + 10}" viewBox="0 0 {_WIDTH} {y + 10}"'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def _bar(one: Found, y: int, most: float) -> list[str]:
    speed = one["tokens_per_second"]
    length = max(round((_WIDTH - _LEFT - 150) * speed / most), 1)
    colour, bold = _COLOURS.get(one["who"], _PEER), "bold" if one["who"] == OURS else "normal"
    memory = "" if one["peak_gb"] is None else f"  {one['peak_gb']:.0f} GB"
    return [
        _text(12, y + 12, one["label"], weight=bold),
        f'<rect x="{_LEFT}" y="{y}" width="{length}" height="{_BAR}" fill="{colour}"/>',
        _text(_LEFT + length + 6, y + 12, f"{speed:,.0f}{memory}", weight=bold),
    ]


def _text(x: int, y: int, text: str, *, weight: str) -> str:
    return f'<text x="{x}" y="{y}" font-weight="{weight}" fill="#57606a">{escape(text)}</text>'
