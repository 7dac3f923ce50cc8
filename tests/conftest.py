"""For all tests."""

from __future__ import annotations

import asyncio

# pytest-asyncio asks for the current loop before each async test; Python 3.11 then makes one that nobody closes, and
# its ResourceWarning is an error here. After this there is none, and asking makes none.
asyncio.set_event_loop(None)
