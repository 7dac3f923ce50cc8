"""From HTTP to the loop's errors: the one place that knows status codes."""

from __future__ import annotations

import json
import re

from finetune_operator.runtime.gateway import ApiError, ConflictError, DeniedError, RejectedError, TransientError

_CONFLICT, _TOO_MANY, _SERVER_ERROR, _UNAUTHORIZED = 409, 429, 500, 401
_DENIED = re.compile(r"denied (the )?request")
"""So say ValidatingAdmissionPolicies and webhooks; quotas and missing rights do not."""


def error_for(status: int, body: bytes, what: str, *, retry_after: str | None = None) -> ApiError:
    """Return the error that a response stands for, with the API server's own message."""
    message = f"{what}: {status} {_message(body)}"
    if status == _CONFLICT:
        return ConflictError(message)
    # 401: the token has just been rotated and is read again with the next request.
    if status in (_TOO_MANY, _UNAUTHORIZED) or status >= _SERVER_ERROR:
        wait = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
        return TransientError(message, retry_after=wait)
    return DeniedError(message) if _DENIED.search(message) else RejectedError(message)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body).get("message", ""))[:500]
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace")
