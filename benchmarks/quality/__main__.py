"""`python -m benchmarks.quality [format facts same]`: run the parts, print the figures; 1 where a promise is missed.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.quality import exports, facts, orders, sameness
from benchmarks.quality.figure import Figure, table


def format_part(folder: Path) -> list[Figure]:
    """A strict format is learned, and the run's outputs are one model."""
    run = orders.learn_format(folder)
    return [*orders.figures(run), *exports.figures(run)]


def facts_part(folder: Path) -> list[Figure]:
    """Invented facts are recalled."""
    return facts.figures(facts.learn_facts(folder))


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "format": format_part,
    "facts": facts_part,
    "same": sameness.figures,
}


def main() -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all when absent")
    parts = parser.parse_args().parts or list(PARTS)
    _be_quiet()
    started, found = time.monotonic(), []
    for part in parts:
        with tempfile.TemporaryDirectory(prefix=f"quality-{part}-") as folder:
            figures = PARTS[part](Path(folder))
        print(f"\n{table(figures)}\n", flush=True)
        found += figures
    minutes = (time.monotonic() - started) / 60
    print(f"\n{table(found)}\n\n{minutes:.1f} minutes")
    print(json.dumps({"minutes": round(minutes, 1), "figures": [figure.to_json() for figure in found]}))
    return int(not all(figure.holds for figure in found))


def _be_quiet() -> None:
    """Keep loading bars and notices of libraries out of the figures."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
