"""Which servers a job's pods may call: those of the platform team, whatever tricks are in a URL."""

from __future__ import annotations

import pytest

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.views import ProfileView
from finetune_operator.policy.endpoints import endpoint_refusal, is_allowed
from tests.support.builders import Story, make_profile, make_spec

JUDGE = "https://judge.example.com/v1"


@pytest.mark.parametrize(
    ("pattern", "endpoint", "allowed"),
    [
        (JUDGE, JUDGE, True),
        (JUDGE, "HTTPS://Judge.Example.com/v1/", True),
        (JUDGE, "https://judge.example.com/v1/openai", True),
        (JUDGE, "https://judge.example.com/v2", False),
        (JUDGE, "https://judge.example.com/v11", False),
        (JUDGE, "https://judge.example.com:8443/v1", False),
        (JUDGE, "http://judge.example.com/v1", False),
        (JUDGE, "https://judge.example.com/v1/../admin", False),
        (JUDGE, "https://judge.example.com/v1/%2e%2e/admin", False),
        ("https://*.example.com", "https://judge.example.com/v1", True),
        ("https://*.example.com", "https://example.com/v1", False),
        ("https://*.example.com/", "https://evil.test/x.example.com", False),
        ("https://*", "http://169.254.169.254/latest", False),
        ("http://llm.models.svc:8000/v1", "http://llm.models.svc:8000/v1", True),
        ("http://llm.models.svc:*/*", "http://llm.models.svc:8000/v1", True),
        ("http://[fd00::1]:8000", "http://[fd00::1]:8000/v1", True),
    ],
)
def test_a_pattern_allows_its_hosts_and_what_lies_below_its_path(pattern: str, endpoint: str, allowed: bool) -> None:
    assert is_allowed(endpoint, pattern) is allowed


def refusal(profile: ProfileView | None, endpoint: str = JUDGE) -> str | None:
    spec = make_spec(evaluation={"judge": {"endpoint": endpoint, "model": "m"}})
    return endpoint_refusal(FineTuneJobSpec.model_validate(spec), profile)


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (None, "needs a FineTuneProfile that allows it (limits.allowedEndpoints)"),
        (make_profile(), "is not among the endpoints of profile 'pool': none"),
        (make_profile(limits={"allowedEndpoints": ["https://other"]}), "profile 'pool': https://other"),
        (make_profile(defaults={"evaluation": {"judge": {"endpoint": "https://own"}}}), "profile 'pool': none"),
    ],
    ids=["no profile", "no list", "another", "another of the profile's own"],
)
def test_an_endpoint_that_nobody_allowed_is_refused(profile: ProfileView | None, says: str) -> None:
    assert says in str(refusal(profile))


def test_an_endpoint_that_the_platform_team_named_may_be_called() -> None:
    assert refusal(make_profile(limits={"allowedEndpoints": [JUDGE]})) is None
    assert refusal(make_profile(defaults={"evaluation": {"judge": {"endpoint": JUDGE}}})) is None


def test_a_tracking_server_is_an_endpoint_too() -> None:
    server = "http://mlflow.ml.svc:5000"
    spec = FineTuneJobSpec.model_validate(make_spec(tracking={"mlflow": {"trackingUri": server}}))
    assert f"spec.tracking.mlflow.trackingUri {server} needs a FineTuneProfile" in str(endpoint_refusal(spec, None))
    assert endpoint_refusal(spec, make_profile(limits={"allowedEndpoints": [server]})) is None
    own = make_profile(defaults={"tracking": {"mlflow": {"trackingUri": server}}})
    assert endpoint_refusal(spec, own) is None


def test_a_job_without_a_judge_needs_no_list() -> None:
    assert endpoint_refusal(FineTuneJobSpec.model_validate(make_spec()), None) is None


def test_a_refused_job_starts_no_pod_and_says_why() -> None:
    story = Story(make_spec(evaluation={"judge": {"endpoint": JUDGE, "model": "m"}}))

    assert story.sees().create is None
    assert story.condition("Validated") == ("False", "ProfileRefused")
