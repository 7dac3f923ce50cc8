"""The trainer's log: one line with time, level and message on stderr, and its tail for the termination message."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_TAIL_LINES = 40
# They log every file and request at INFO; what matters to the user is ours to say.
_CHATTY = ("httpx", "httpcore", "urllib3", "botocore", "boto3", "s3transfer", "filelock", "fsspec", "datasets", "torch")
_CHATTY_HF = ("transformers", "trl", "peft", "accelerate", "huggingface_hub")
# Python's warnings, and a remark of bitsandbytes about kernels that it would fetch from the hub.
_FOR_DEVELOPERS = ("py.warnings", "bitsandbytes")

log = logging.getLogger("finetune")


class LogTail(logging.Handler):
    """Keeps the last lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one line."""
        self._lines.append(self.format(record))

    def text(self, size: int) -> str:
        """Return the last `size` characters."""
        return "\n".join(self._lines)[-size:]


class Pace:
    """How often long work says how far it is."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last line is so long ago; then the next one is due so much later."""
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


@contextmanager
def logging_to_stderr(level: str) -> Iterator[LogTail]:
    """Log to stderr inside; yields the tail."""
    tail, stream = LogTail(), logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(_FORMAT, _TIME)
    formatter.converter = time.gmtime
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    for handler in (tail, stream):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level)
    _quieten(level)
    logging.captureWarnings(capture=True)
    try:
        yield tail
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(tail)
        root.removeHandler(stream)
        root.setLevel(before[1])


def _quieten(level: str) -> None:
    for name in (*_CHATTY, *_CHATTY_HF):
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else "WARNING")
    for name in _FOR_DEVELOPERS:
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else "ERROR")
