"""Which servers a job may have its pods call: those that the platform team has named (job-traps 21).

A pod reaches what its user does not: the cluster's own services, the cloud's metadata. So an endpoint in a job needs
an entry in the profile's allow-list; one among the profile's defaults is the platform team's own.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.views import ProfileView

_FIELDS = (("evaluation", "judge", "endpoint"), ("tracking", "mlflow", "trackingUri"))


def endpoint_refusal(spec: FineTuneJobSpec, profile: ProfileView | None) -> str | None:
    """Return why the job's judge or tracking server may not be called, or None if they may."""
    return next((refusal for path in _FIELDS if (refusal := _refusal(spec.to_wire(), path, profile))), None)


def _refusal(spec: dict[str, Any], path: tuple[str, ...], profile: ProfileView | None) -> str | None:
    endpoint, field = _at(spec, path), f"spec.{'.'.join(path)}"
    if endpoint is None or (profile and _at(profile.spec.defaults, path) == endpoint):
        return None
    if profile is None:
        return f"{field} {endpoint} needs a FineTuneProfile that allows it (limits.allowedEndpoints)"
    allowed = profile.spec.limits.allowed_endpoints or ()
    if any(is_allowed(endpoint, pattern) for pattern in allowed):
        return None
    return f"{field} {endpoint} is not among the endpoints of profile {profile.name!r}: {', '.join(allowed) or 'none'}"


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


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
