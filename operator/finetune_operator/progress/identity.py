"""Who posts: the pod that a TokenReview names.

A progress token is projected by the kubelet and bound to its pod; the API server vouches for namespace, account and
pod. Anybody who may create pods can have a token for any audience made, so the audience alone proves nothing: the
server compares the pod with the job's (job-traps 16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ACCOUNT_PREFIX = ("system", "serviceaccount")
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIdentity:
    """What the API server vouches for; a token that is bound to no pod has no pod."""

    namespace: str
    service_account: str
    pod_name: str | None
    pod_uid: str | None
    audiences: frozenset[str]


def parse_token_review(body: Mapping[str, Any]) -> TokenIdentity | None:
    """Return the identity in a TokenReview response; None when it is refused or no ServiceAccount's."""
    status = body.get("status") or {}
    user = status.get("user") or {}
    account = _service_account(user.get("username", ""))
    if status.get("authenticated") is not True or account is None:
        return None
    extra = user.get("extra") or {}
    return TokenIdentity(
        namespace=account[0],
        service_account=account[1],
        pod_name=_first(extra, _POD_NAME),
        pod_uid=_first(extra, _POD_UID),
        audiences=frozenset(status.get("audiences") or ()),
    )


def _service_account(username: str) -> tuple[str, str] | None:
    parts = username.split(":")
    if len(parts) != 4 or tuple(parts[:2]) != _ACCOUNT_PREFIX:  # noqa: PLR2004 - system:serviceaccount:NS:NAME
        return None
    return parts[2], parts[3]


def _first(extra: Mapping[str, Any], key: str) -> str | None:
    values = extra.get(key)
    return values[0] if values else None
