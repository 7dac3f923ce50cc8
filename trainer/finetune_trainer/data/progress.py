"""A sign of life from loops over all examples: a line in the log now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from finetune_trainer.logs import log

EVERY = 15.0
"""Seconds between two lines."""
LOOK = 1000
"""Items between two looks at the clock."""

Item = TypeVar("Item")


def told(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yield the items, and log how many there have been."""
    last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if number % LOOK == 0 and (now := time.monotonic()) > last + EVERY:
            log.info("%s: %d so far", what, number)
            last = now
