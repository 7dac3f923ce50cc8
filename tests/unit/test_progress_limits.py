"""Token buckets, the review cache and the report store: what they allow, remember and forget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from finetune_operator.api.report import ProgressReport
from finetune_operator.policy.progress import pace
from finetune_operator.progress.limits import Rate, RateLimiter
from finetune_operator.progress.memory import ProgressStore
from finetune_operator.progress.reviews import REFUSED_TTL, TTL, ReviewCache
from tests.support.progress import TableReviewer, make_identity

AUDIENCE = "finetuning.dev/uid-1"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    limiter = RateLimiter(Rate(2, 10), clock=clock)
    assert [limiter.wait("a") for _ in range(10)] == [0.0] * 10
    assert limiter.wait("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert limiter.wait("a") == 0.0
    assert limiter.wait("a") > 0


def test_asking_while_refused_does_not_make_the_wait_longer() -> None:
    clock = Clock()
    limiter = RateLimiter(Rate(1, 1), clock=clock)
    limiter.wait("a")
    assert [limiter.wait("a") for _ in range(5)] == [1.0] * 5
    clock.now += 1
    assert limiter.wait("a") == 0.0


def test_a_bucket_holds_no_more_than_the_burst() -> None:
    clock = Clock()
    limiter = RateLimiter(Rate(2, 3), clock=clock)
    clock.now += 3600
    assert [limiter.wait("a") == 0.0 for _ in range(4)] == [True, True, True, False]


def test_keys_do_not_touch_each_other_and_are_bounded() -> None:
    limiter = RateLimiter(Rate(0.001, 1), size=2, clock=Clock())
    assert [limiter.wait(key) for key in ("a", "b")] == [0.0, 0.0]
    assert limiter.wait("a") > 0
    assert limiter.wait("c") == 0.0  # "b", unused for longest, is forgotten
    assert limiter.wait("a") > 0
    assert limiter.wait("b") == 0.0


async def test_an_identity_is_asked_for_once_a_minute() -> None:
    clock, reviewer = Clock(), TableReviewer({"good": make_identity()})
    cache = ReviewCache(reviewer, clock=clock)
    for _ in range(3):
        assert await cache.review("good", audience=AUDIENCE) == make_identity()
    assert len(reviewer.asked) == 1
    clock.now += TTL
    assert not cache.holds("good", audience=AUDIENCE)
    await cache.review("good", audience=AUDIENCE)
    assert len(reviewer.asked) == 2


async def test_a_refusal_is_remembered_for_less_long() -> None:
    clock, reviewer = Clock(), TableReviewer()
    cache = ReviewCache(reviewer, clock=clock)
    assert await cache.review("bad", audience=AUDIENCE) is None
    assert await cache.review("bad", audience=AUDIENCE) is None
    assert len(reviewer.asked) == 1
    clock.now += REFUSED_TTL
    await cache.review("bad", audience=AUDIENCE)
    assert len(reviewer.asked) == 2


async def test_answers_are_by_token_and_audience() -> None:
    cache = ReviewCache(TableReviewer({"good": make_identity()}))
    assert await cache.review("good", audience=AUDIENCE)
    assert await cache.review("good", audience="finetuning.dev/uid-2") is None
    assert await cache.review("good", audience=AUDIENCE)


async def test_a_failed_review_is_not_remembered() -> None:
    reviewer = TableReviewer({"good": make_identity()}, error=OSError("away"))
    cache = ReviewCache(reviewer)
    with pytest.raises(OSError, match="away"):
        await cache.review("good", audience=AUDIENCE)
    reviewer.error = None
    assert await cache.review("good", audience=AUDIENCE)


async def test_the_cache_is_bounded_and_holds_no_token() -> None:
    cache = ReviewCache(TableReviewer({name: make_identity() for name in "abc"}), size=2)
    for token in "abc":
        await cache.review(token, audience=AUDIENCE)
    assert [cache.holds(token, audience=AUDIENCE) for token in "abc"] == [False, True, True]
    assert not any(token in repr(vars(cache)["_answers"]) for token in ("'a'", "'b'", "'c'"))


class AnyAudienceReviewer:
    """An API server that is not aware of audiences: it authenticates and returns none."""

    async def review_token(self, token: str, *, audience: str) -> object:
        from dataclasses import replace

        return replace(make_identity(), audiences=frozenset())


async def test_an_identity_without_the_audience_is_refused() -> None:
    cache = ReviewCache(AnyAudienceReviewer())  # type: ignore[arg-type]
    assert await cache.review("good", audience=AUDIENCE) is None


def make_report(second: int, *, percent: int = 1) -> ProgressReport:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    return ProgressReport(received_at=start + timedelta(seconds=second), pod_uid="pod-1", percent=percent)


def test_the_store_keeps_the_newest_report() -> None:
    store = ProgressStore()
    assert store.latest("uid-1") is None
    assert store.put("uid-1", make_report(1))
    assert store.put("uid-1", make_report(2, percent=2))
    assert store.latest("uid-1") == make_report(2, percent=2)


def test_a_report_that_was_overtaken_is_dropped() -> None:
    store = ProgressStore()
    store.put("uid-1", make_report(2))
    assert not store.put("uid-1", make_report(1, percent=50))
    assert store.latest("uid-1") == make_report(2)


def test_the_store_forgets_what_it_is_told_and_what_was_silent_for_longest() -> None:
    store = ProgressStore(size=2)
    for second, uid in enumerate(["a", "b", "a", "c"]):
        store.put(uid, make_report(second))
    assert [bool(store.latest(uid)) for uid in "abc"] == [True, False, True]
    store.forget("a")
    store.forget("a")
    assert store.latest("a") is None


def test_jobs_that_posted_lately_are_counted() -> None:
    store = ProgressStore()
    for second in (0, 20, 40, 45):
        store.put(f"uid-{second}", make_report(second))
    now = make_report(49).received_at
    assert store.posting(now) == 3


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 5), (300, 5), (660, 10), (1000, 15.15)])
def test_the_more_jobs_post_the_less_often_each_is_written(jobs: int, seconds: float) -> None:
    assert pace(5, jobs=jobs) == pytest.approx(seconds, abs=0.01)
