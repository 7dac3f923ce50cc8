"""TokenReview responses, as the API server gives them."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.progress.identity import TokenIdentity, parse_token_review

USER = {
    "username": "system:serviceaccount:team:default",
    "uid": "c0ffee",
    "groups": ["system:serviceaccounts", "system:authenticated"],
    "extra": {
        "authentication.kubernetes.io/pod-name": ["tune-0"],
        "authentication.kubernetes.io/pod-uid": ["pod-1"],
        "authentication.kubernetes.io/node-name": ["node-1"],
    },
}


def review(**changes: Any) -> dict[str, Any]:
    status = {"authenticated": True, "audiences": ["finetuning.dev/uid-1"], "user": USER, **changes}
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": status}


def test_a_pods_token() -> None:
    assert parse_token_review(review()) == TokenIdentity(
        namespace="team",
        service_account="default",
        pod_name="tune-0",
        pod_uid="pod-1",
        audiences=frozenset({"finetuning.dev/uid-1"}),
    )


@pytest.mark.parametrize("extra", [None, {}, {"authentication.kubernetes.io/pod-uid": []}], ids=repr)
def test_a_token_that_is_bound_to_no_pod(extra: Any) -> None:
    identity = parse_token_review(review(user={**USER, "extra": extra}))
    assert identity
    assert (identity.pod_name, identity.pod_uid) == (None, None)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(review(authenticated=False, error="token has expired"), id="refused"),
        pytest.param(review(authenticated="true"), id="no-boolean"),
        pytest.param({"status": {"error": "[invalid bearer token]"}}, id="error-only"),
        pytest.param({}, id="empty"),
        pytest.param({"status": None}, id="no-status"),
        pytest.param(review(user={"username": "kubernetes-admin"}), id="a-person"),
        pytest.param(review(user={"username": "system:node:node-1"}), id="a-node"),
        pytest.param(review(user={"username": "system:serviceaccount:team"}), id="too-short"),
        pytest.param(review(user={"username": "oidc:serviceaccount:team:default"}), id="another-issuer"),
        pytest.param(review(user=None), id="no-user"),
    ],
)
def test_everything_else_is_nobody(body: dict[str, Any]) -> None:
    assert parse_token_review(body) is None
