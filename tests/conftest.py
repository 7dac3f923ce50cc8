"""For all tests."""

from __future__ import annotations

import asyncio
import signal

# A shell starts what runs in the background deaf to Ctrl-C, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-asyncio asks for the current loop before each async test; Python 3.11 then makes one that nobody closes, and
# its ResourceWarning is an error here. After this there is none, and asking makes none.
asyncio.set_event_loop(None)
