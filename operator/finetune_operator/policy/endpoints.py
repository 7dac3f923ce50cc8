"""Which servers a job may have its pods call: those that the platform team has named (job-traps 21).

A pod reaches what its user does not: the cluster's own services, the cloud's metadata. So an endpoint in a job needs
an entry in the profile's allow-list; one among the profile's defaults is the platform team's own.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.views import ProfileView


def endpoint_refusal(spec: FineTuneJobSpec, profile: ProfileView | None) -> str | None:
    """Return why the job's judge may not be called, or None if it may."""
    judge = spec.evaluation.judge
    if judge is None or (profile and _own(profile) == judge.endpoint):
        return None
    if profile is None:
        return (
            f"spec.evaluation.judge.endpoint {judge.endpoint} needs a FineTuneProfile that allows it "
            "(limits.allowedEndpoints)"
        )
    allowed = profile.spec.limits.allowed_endpoints or ()
    if any(is_allowed(judge.endpoint, pattern) for pattern in allowed):
        return None
    listed = ", ".join(allowed) or "none"
    return (
        f"spec.evaluation.judge.endpoint {judge.endpoint} is not among the endpoints of profile {profile.name!r}: "
        f"{listed}"
    )


def is_allowed(endpoint: str, pattern: str) -> bool:
    """Whether a URL has the scheme, host and port of a pattern, and lies at its path or below.

    A * stands for characters of the host alone: in the whole URL it would let any host through that has the wanted
    one in its path.
    """
    scheme, host, path = _parts(endpoint)
    wanted_scheme, wanted_host, wanted_path = _parts(pattern)
    return (
        scheme == wanted_scheme
        and (host == wanted_host or fnmatchcase(host, wanted_host))
        and f"{path}/".startswith(f"{wanted_path.rstrip('*').rstrip('/')}/")
        and ".." not in path.split("/")
        and "%" not in path
    )


def _parts(url: str) -> tuple[str, str, str]:
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return scheme.lower(), host.lower(), f"/{path}".rstrip("/")


def _own(profile: ProfileView) -> Any:
    found: Any = profile.spec.defaults or {}
    for name in ("evaluation", "judge", "endpoint"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
