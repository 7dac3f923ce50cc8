"""Why a post is refused, and how that reads on the wire: a Kubernetes `Status`, as clients of its API expect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from aiohttp import web

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    413: "RequestEntityTooLarge",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """A field of the body and what is wrong with it."""

    field: str
    message: str


class RefusalError(Exception):
    """A post that is not taken."""

    def __init__(
        self, code: int, message: str, *, causes: tuple[Cause, ...] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.causes, self.retry_after = code, message, causes, retry_after

    def response(self) -> web.Response:
        """Return the answer to the sender."""
        response = web.json_response(self._status(), status=self.code)
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.code == 401:  # noqa: PLR2004 - RFC 9110 wants the scheme named
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": _REASONS.get(self.code, "Unknown"),
            "code": self.code,
        }
        if self.causes:
            causes = [{"reason": "FieldValueInvalid", "field": c.field, "message": c.message} for c in self.causes]
            status["details"] = {"causes": causes}
        return status
