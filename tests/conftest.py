"""For all tests."""

from __future__ import annotations

import asyncio
import signal

import pytest

# A shell starts what runs in the background deaf to Ctrl-C, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-asyncio asks for the current loop before each async test; Python 3.11 then makes one that nobody closes, and
# its ResourceWarning is an error here. After this there is none, and asking makes none.
asyncio.set_event_loop(None)

_LONG = (
    *("test_train_zero", "test_quality", "test_families", "test_train_methods"),
    # These start several processes as well, which would wait for those of the first one.
    *("test_train_ranks", "test_preference", "test_train_processes"),
)
_FOLDERS = ("trainer", "e2e", "faults", "cluster", "chart", "integration", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left alone with one of them at the end."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[int, int]:
    name, folder = item.path.stem, item.path.parent.name
    long = _LONG.index(name) if name in _LONG else len(_LONG)
    return long, _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)
