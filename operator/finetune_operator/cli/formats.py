"""`-o json`: what a command found as JSON on standard output, for programs; what people read is then on standard error.

`finetune run` and `samples` have had `--output URI` from the job's own words, where `json` and `text` are formats too.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

FORMATS = ("text", "json")


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add `-o`, `--output`."""
    parser.add_argument("-o", "--output", dest="format", choices=FORMATS, default="text", help="default: text")


def add_output_or_format(parser: argparse.ArgumentParser) -> None:
    """Add `-o FORMAT` and `--output URI`, which a format's name is no URI for; `chosen` tells them apart."""
    parser.add_argument("-o", dest="format", choices=FORMATS, default="text", help="default: text")
    where = (
        "in place of spec.output.uri: a path (./json for a folder of that name) or a URI; json or text is as with -o"
    )
    parser.add_argument("--output", metavar="URI", help=where)


def chosen(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with a format that was given as `--output` where it belongs."""
    if arguments.output in FORMATS:
        arguments.format, arguments.output = arguments.output, None
    return arguments


def is_json(arguments: argparse.Namespace) -> bool:
    """Whether a program reads the answer."""
    return bool(arguments.format == "json")


def show_json(value: Any) -> None:
    """Print one JSON value."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def show_json_line(value: Any) -> None:
    """Print one JSON value on a line of its own, at once: for what goes on for long."""
    print(json.dumps(value, ensure_ascii=False), flush=True)
