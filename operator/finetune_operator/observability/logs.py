"""Log lines: JSON for machines, text for people. Nothing that comes from a Secret or a token is ever logged."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

ABOUT = ("job", "run", "attempt", "phase")
"""What a line may say about a FineTuneJob, in fields of its own: `extra` of the call."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the names that log collectors know."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in ABOUT if hasattr(record, name)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(log_format: str) -> None:
    """Send all logs to standard error in the given format: json or text."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # kopf says "Handler 'x' succeeded" for every event (kopf.md, trap 7).
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf.activities.probe").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a line for every liveness probe
