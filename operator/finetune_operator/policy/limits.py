"""What a profile lets a job ask for: namespaces, GPUs, memory, time, models, images, places to write to.

A limit that a job could get around by saying nothing is none: what is not said is refused, or set to the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec, Limits
from finetune_operator.api.quantities import quantity
from finetune_operator.api.views import JobView, ProfileView


def refusals(job: JobView, spec: FineTuneJobSpec, profile: ProfileView) -> Iterator[str]:
    """Yield why a profile does not allow a job."""
    namespaces = profile.spec.namespaces
    if namespaces is not None and not _matches(job.namespace, namespaces):
        yield f"profile {profile.name!r} may not be used from namespace {job.namespace!r}"
    yield from _sizes(spec, profile.spec.limits, f"profile {profile.name!r}")
    yield from _code(spec, profile.spec, f"profile {profile.name!r}")
    yield from _places(spec, profile.spec.limits, f"profile {profile.name!r}")


def bounded(spec: FineTuneJobSpec, limits: Limits) -> FineTuneJobSpec:
    """Return the spec with no longer time than the profile allows. Not refused: it may be changed while a job runs."""
    times = (limits.max_active_deadline_seconds, spec.lifecycle.active_deadline_seconds)
    if limits.max_active_deadline_seconds is None:
        return spec
    lifecycle = spec.lifecycle.model_copy(update={"active_deadline_seconds": min(time for time in times if time)})
    return spec.model_copy(update={"lifecycle": lifecycle})


def _sizes(spec: FineTuneJobSpec, limits: Limits, name: str) -> Iterator[str]:
    asked, gpus = spec.resources, spec.resources.nodes * spec.resources.gpus
    if limits.max_gpus is not None and gpus > limits.max_gpus:
        yield f"spec.resources asks for {gpus} GPUs, {name} allows {limits.max_gpus}"
    if limits.max_nodes is not None and asked.nodes > limits.max_nodes:
        yield f"spec.resources.nodes is {asked.nodes}, {name} allows {limits.max_nodes}"
    if limits.max_memory is not None:
        if asked.memory is None:
            yield f"spec.resources.memory is missing, {name} allows {limits.max_memory}: say how much the job takes"
        elif quantity(asked.memory) > quantity(limits.max_memory):
            yield f"spec.resources.memory is {asked.memory}, {name} allows {limits.max_memory}"


def _code(spec: FineTuneJobSpec, rules: FineTuneProfileSpec, name: str) -> Iterator[str]:
    allowed = rules.limits.allowed_models
    if allowed is not None and not _matches(spec.model.uri, allowed):
        yield f"spec.model.uri {spec.model.uri} is not among the models of {name}: {', '.join(allowed)}"
    texts = (*spec.dataset.uris, spec.evaluation.forgetting.uri)
    data = rules.limits.allowed_datasets
    if data is not None and (other := [uri for uri in texts if uri and not _matches(uri, data)]):
        yield f"spec: the data {other[0]} is not among those of {name}: {', '.join(data)}"
    image, images = spec.trainer.image, rules.limits.allowed_images or ()
    if image and image != rules.trainer.image and not _matches(image, images):
        yield f"spec.trainer.image {image} is not allowed by {name}"
    account, accounts = spec.scheduling.service_account_name, rules.limits.allowed_service_accounts or ()
    if account and account != _default_account(rules) and not _matches(account, accounts):
        yield f"spec.scheduling.serviceAccountName {account} is not allowed by {name}"


def _default_account(rules: FineTuneProfileSpec) -> object:
    scheduling = (rules.defaults or {}).get("scheduling")
    return scheduling.get("serviceAccountName") if isinstance(scheduling, dict) else None


def _places(spec: FineTuneJobSpec, limits: Limits, name: str) -> Iterator[str]:
    prefixes = limits.allowed_output_prefixes
    if prefixes is None:
        return
    resume = spec.checkpoint.resume_from
    places = {
        "output.uri": spec.output.uri,
        "checkpoint.resumeFrom": resume if "://" in resume else None,
        "output.hub.repo": f"hf://{spec.output.hub.repo}" if spec.output.hub else None,
    }
    for field, uri in places.items():
        if uri and not any(_below(uri, prefix) for prefix in prefixes):
            yield f"spec.{field} {uri} is not below a prefix of {name}: {', '.join(prefixes)}"


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _below(uri: str, prefix: str) -> bool:
    # A prefix ends at a path border, so that s3://team-a does not open s3://team-attic.
    folder = prefix.rstrip("/") + "/"
    return (uri.rstrip("/") + "/").startswith(folder) and "/../" not in uri + "/"
