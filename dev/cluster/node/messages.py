"""Termination messages: the last words of a container, from its file or from its log."""

from pathlib import Path

FILE_BYTES = 4096
LOG_BYTES = 2048
LOG_LINES = 80


def termination_message(file: Path, *, log: Path, policy: str, exit_code: int) -> str:
    """Return what a container left behind."""
    message = _last_bytes(file, FILE_BYTES)
    if not message and exit_code != 0 and policy == "FallbackToLogsOnError":
        lines = _last_bytes(log, LOG_BYTES).splitlines(keepends=True)
        message = "".join(lines[-LOG_LINES:])
    return message


def _last_bytes(path: Path, count: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - count))
        return file.read(count).decode(errors="replace")
