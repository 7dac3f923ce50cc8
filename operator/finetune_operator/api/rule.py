"""The form of a rule that has two readers: the API server and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule at one place of a FineTuneJob."""

    at: tuple[str, ...]
    """Path of the value that the rule is about, from the object's root; () is the object, "[]" each item of a list."""
    cel: str
    """The rule as the API server evaluates it."""
    message: str
    """What is wrong and what to do."""
    holds: Callable[[Any], bool]
    """The same rule on the JSON value, for the command line."""
    cluster_only: bool = False
    """Whether the rule is lifted for `finetune run`."""
