"""A client of any OpenAI-compatible server: one question, one reply, with patience and within a time limit.

The key is sent to the endpoint that was named and nowhere else: a redirect is an error, and no text that leaves this
module has the key in it.
"""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import IO, Any

Messages = list[dict[str, str]]

_REQUEST_SECONDS = 120.0
_MAX_BYTES = 1 << 20
_SHOWN = 200
_SERVER_ERRORS = 500
_MAY_PASS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_NAMES = ("max_tokens", "max_completion_tokens", "temperature")


class ChatError(Exception):
    """No reply. The message says why, for a person."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless
        """Whether every other question would meet the same."""


class _MayPassError(Exception):
    def __init__(self, why: str, *, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after
        """Seconds that the server asks for (Retry-After)."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often a server is asked."""

    deadline: float
    """On the clock of time.monotonic(); nothing is asked after it."""
    attempts: int = 5
    first_wait: float = 1.0
    """Seconds before the second attempt; doubles with each, up to longest_wait."""
    longest_wait: float = 30.0
    stop: threading.Event = field(default_factory=threading.Event)
    """Set from outside: nothing more is asked."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be asked."""
        return self.stop.is_set() or time.monotonic() >= self.deadline


class ChatClient:
    """Asks one model at one endpoint; may be shared by threads."""

    def __init__(self, endpoint: str, model: str, *, key: str | None, max_tokens: int, patience: Patience) -> None:
        self._url = f"{endpoint.rstrip('/')}/chat/completions"
        self._model, self._key, self._max_tokens, self._patience = model, key, max_tokens, patience
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._bare = False

    def ask(self, messages: Messages) -> str:
        """Return the reply's text, "" if it has none. Raises ChatError."""
        why = "the time limit was over"
        for attempt in range(self._patience.attempts):
            if self._patience.is_over:
                break
            try:
                return self._once(messages)
            except _MayPassError as error:
                why = str(error)
                self._wait(attempt, at_least=error.after)
        raise ChatError(why)

    def _once(self, messages: Messages) -> str:
        bare = self._bare  # another thread may set it meanwhile
        try:
            with self._post(self._body(messages, bare=bare)) as response:
                return _text(self._read(response))
        except urllib.error.HTTPError as error:
            with error:
                said = self._redacted(_beginning(error))
            if error.code == HTTPStatus.BAD_REQUEST and not bare and any(name in said for name in _NAMES):
                self._bare = True  # some models take neither a temperature nor a limit by this name
                return self._once(messages)
            raise _sorted(error, said) from None
        except (OSError, HTTPException) as error:  # URLError, TimeoutError and broken connections
            raise _MayPassError(
                f"no answer: {getattr(error, 'reason', None) or error or type(error).__name__}"
            ) from None

    def _body(self, messages: Messages, *, bare: bool) -> bytes:
        settings = {} if bare else {"temperature": 0, "max_completion_tokens": self._max_tokens}
        return json.dumps({"model": self._model, "messages": messages, **settings}).encode()

    def _post(self, body: bytes) -> IO[bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "finetune-trainer"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)  # noqa: S310 - http and https only, by the CRD
        left = self._patience.deadline - time.monotonic()
        response: IO[bytes] = self._opener.open(request, timeout=max(0.1, min(_REQUEST_SECONDS, left)))
        return response

    def _read(self, response: Any) -> bytes:
        content = b""
        while piece := response.read1(_MAX_BYTES):
            content += piece
            if len(content) > _MAX_BYTES:
                return b""
            if self._patience.is_over:  # a byte a second is no answer either
                raise _MayPassError("no whole answer within the time limit")
        return content

    def _wait(self, attempt: int, *, at_least: float) -> None:
        wait = min(self._patience.longest_wait, max(at_least, self._patience.first_wait * 2**attempt))
        wait *= random.uniform(0.8, 1.2)  # noqa: S311 - so that threads do not come back together
        self._patience.stop.wait(min(wait, max(0.0, self._patience.deadline - time.monotonic())))

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _text(content: bytes) -> str:
    """Return the reply in a response; whatever is no reply is no text."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return text if isinstance(text, str) else ""


def _beginning(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(4 * _SHOWN).decode(errors="replace").split())[:_SHOWN]
    except (OSError, HTTPException):
        return ""


def _sorted(error: urllib.error.HTTPError, said: str) -> Exception:
    if error.code in _MAY_PASS or error.code >= _SERVER_ERRORS:
        after = error.headers.get("Retry-After", "")
        return _MayPassError(f"it answered {error.code} {said}".strip(), after=float(after) if after.isdigit() else 0.0)
    if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        why = f"it refuses the key ({error.code}): OPENAI_API_KEY in the Secret of evaluation.judge.secretRef"
        return ChatError(why, hopeless=True)
    if HTTPStatus.MULTIPLE_CHOICES <= error.code < HTTPStatus.BAD_REQUEST:
        return ChatError(f"it redirects ({error.code}): name the address that answers itself", hopeless=True)
    hopeless = error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
    return ChatError(f"it answered {error.code} {said}".strip(), hopeless=hopeless)
