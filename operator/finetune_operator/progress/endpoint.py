"""One post: what is checked, cheap before dear, and what is taken.

Order: size, rate, bearer, job, TokenReview, pod, content. Whoever may create pods may post here, so nothing that
costs memory or asks the API server happens before the rate is known, and what is refused is not remembered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web
from pydantic import ValidationError

from finetune_contract.model import Model
from finetune_contract.progress import MAX_BODY_BYTES, TrainerStatus
from finetune_operator.api.constants import progress_audience
from finetune_operator.api.report import report_from, says_nothing
from finetune_operator.progress.identity import TokenIdentity
from finetune_operator.progress.limits import Rate, RateLimiter
from finetune_operator.progress.ports import JobHandle, Jobs, TokenReviewer
from finetune_operator.progress.refusals import Cause, RefusalError
from finetune_operator.progress.reviews import ReviewCache, token_digest

log = logging.getLogger(__name__)

_READ_SECONDS = 10.0
"""A body that takes longer to arrive is given up."""

POSTS = Rate(2, 10)
"""Posts of one peer with one token: trainers post every 2 to 5 seconds."""
REVIEWS = Rate(5, 20)
"""TokenReviews for one peer: without this, a new made-up token with every post would cost a review each."""


class _Body(Model, extra="ignore"):
    # As the contract's ProgressPost, but `{}` is a post too: it keeps what is known.
    trainer_status: TrainerStatus | None = None


class StatusEndpoint:
    """Takes posts for the jobs it is given; `counts` has the answers by code."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        reviewer: TokenReviewer,
        leading: Callable[[], bool] = lambda: True,
        posts: Rate = POSTS,
        reviews: Rate = REVIEWS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._jobs, self._leading, self._clock = jobs, leading, clock
        self._reviews = ReviewCache(reviewer)
        self._posts, self._peers = RateLimiter(posts), RateLimiter(reviews)
        self.counts: Counter[int] = Counter()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one post; what is wrong with it is the answer's `Status`."""
        try:
            await self._take(request)
            response, outcome = web.json_response({}), "taken"
        except RefusalError as refusal:
            response, outcome = refusal.response(), refusal.message
        self.counts[response.status] += 1
        log.debug("post to %r from %s: %d, %s", request.path, request.remote, response.status, outcome)
        return response

    async def _take(self, request: web.Request) -> None:
        received_at = self._clock()
        if not self._leading():
            raise RefusalError(503, "this replica does not lead; the next one will answer", retry_after=2)
        body = await _read(request)
        token = self._admit(request)
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        audience = progress_audience(self._known(namespace, name=name).uid)
        identity = await self._identify(token, audience=audience, peer=request.remote or "")
        # Found anew: the attempt may have ended, or the job may be another one, while the API server was asked.
        job = self._known(namespace, name=name)
        pod_uid = _authorized_pod(identity, namespace=namespace, job=job)
        status = parse_post(body)
        if status is not None and not says_nothing(status):
            report = report_from(status, received_at=received_at, pod_uid=pod_uid, attempt=job.attempt)
            self._jobs.accept(job.uid, report)

    def _admit(self, request: web.Request) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if wait := self._posts.wait((request.remote, token_digest(token))):
            raise RefusalError(429, "too many posts", retry_after=wait)
        if scheme.lower() != "bearer" or not token:
            raise RefusalError(401, "no bearer token: the pod's progress token belongs into the Authorization header")
        return token

    def _known(self, namespace: str, *, name: str) -> JobHandle:
        job = self._jobs.find(namespace, name)
        if job is None:
            raise RefusalError(404, f"no finetunejob {name!r} in namespace {namespace!r}")
        return job

    async def _identify(self, token: str, *, audience: str, peer: str) -> TokenIdentity:
        if not self._reviews.holds(token, audience=audience) and (wait := self._peers.wait(peer)):
            raise RefusalError(429, "too many new tokens from this address", retry_after=wait)
        try:
            identity = await self._reviews.review(token, audience=audience)
        except Exception as error:
            # Only its type is logged: a client's error may quote the request, and the token with it.
            log.warning("TokenReview failed (%s); posts are refused until it works", type(error).__name__)
            raise RefusalError(503, "the token cannot be reviewed now", retry_after=5) from error
        if identity is None:
            raise RefusalError(
                401,
                f"the token is not valid here: it has expired, is not for audience {audience}, its pod is gone, or it "
                "is not a ServiceAccount's",
            )
        return identity


async def _read(request: web.Request) -> bytes:
    too_large = RefusalError(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large
    try:
        async with asyncio.timeout(_READ_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error
    except TimeoutError as error:
        raise RefusalError(408, f"the body did not arrive within {_READ_SECONDS:.0f} seconds") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise RefusalError(400, "the body could not be read") from error


def _authorized_pod(identity: TokenIdentity, *, namespace: str, job: JobHandle) -> str:
    if progress_audience(job.uid) not in identity.audiences:
        raise RefusalError(403, "the token is for an earlier job of this name")
    if identity.namespace != namespace:
        raise RefusalError(403, f"the token is of namespace {identity.namespace!r}, the job of {namespace!r}")
    if identity.pod_uid is None:
        raise RefusalError(403, "the token is bound to no pod")
    if identity.pod_uid not in job.pods:
        raise RefusalError(403, f"pod {identity.pod_name!r} is no live pod of the job's current attempt")
    return identity.pod_uid


def parse_post(body: bytes) -> TrainerStatus | None:
    """Return the post's status, None when it has none. Raises RefusalError that names every wrong field."""
    try:
        return _Body.model_validate_json(body).trainer_status
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        causes = tuple(Cause(".".join(map(str, e["loc"])) or "body", e["msg"]) for e in found)
        message = "; ".join(f"{cause.field}: {cause.message}" for cause in causes[:5])
        raise RefusalError(422, f"the post is invalid: {message}", causes=causes[:32]) from error
