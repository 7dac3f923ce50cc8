"""TokenReviews, remembered for a while: a trainer posts every few seconds and the API server is asked once a minute.

An identity that was accepted stays accepted for at most TTL seconds after its token expired; whether the pod still
belongs to the job's current attempt is never cached.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from finetune_operator.progress.identity import TokenIdentity
from finetune_operator.progress.ports import TokenReviewer

TTL = 60.0
REFUSED_TTL = 10.0
"""Shorter: a refusal may be the API server's cache of its own that lags behind a pod that has just started."""

_Key = tuple[str, str]
_Answer = tuple[float, TokenIdentity | None]


def token_digest(token: str) -> str:
    """Return what stands for a token in keys: tokens themselves are kept nowhere."""
    return hashlib.sha256(token.encode()).hexdigest()


class ReviewCache:
    """Answers by token and audience, bounded: the one unused for longest goes first."""

    def __init__(
        self, reviewer: TokenReviewer, *, size: int = 16384, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reviewer, self._size, self._clock = reviewer, size, clock
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()

    def holds(self, token: str, *, audience: str) -> bool:
        """Tell whether a review would be answered without asking the API server."""
        return self._fresh((token_digest(token), audience)) is not None

    async def review(self, token: str, *, audience: str) -> TokenIdentity | None:
        """Return whose token this is, None when it is refused. Raises what the reviewer raises, which is not kept."""
        key = (token_digest(token), audience)
        answer = self._fresh(key)
        if answer is None:
            identity = await self._reviewer.review_token(token, audience=audience)
            answer = self._keep(key, identity=_for_audience(identity, audience))
        return answer[1]

    def _fresh(self, key: _Key) -> _Answer | None:
        answer = self._answers.get(key)
        if answer is None or answer[0] <= self._clock():
            return None
        self._answers.move_to_end(key)
        return answer

    def _keep(self, key: _Key, *, identity: TokenIdentity | None) -> _Answer:
        answer = (self._clock() + (TTL if identity else REFUSED_TTL), identity)
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)
        return answer


def _for_audience(identity: TokenIdentity | None, audience: str) -> TokenIdentity | None:
    # An API server that knows no audiences authenticates any token and returns no audiences (TokenReviewSpec's docs).
    return identity if identity and audience in identity.audiences else None
