"""Which profile applies, whether it allows the job, and the spec that results.

Precedence: the job's own spec, then the profile's defaults, then the types' defaults. Once a run has begun its
profile is the snapshot in status.resolved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from finetune_contract.nested import laid_over
from finetune_contract.run_config import MAX_BYTES
from finetune_operator.api.conditions import Reason
from finetune_operator.api.hashing import config_hash
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.views import JobView, ProfileView
from finetune_operator.policy.endpoints import endpoint_refusal

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
_CONFIG_HEADROOM = 4096


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a job cannot run yet: somebody has to act, and then it goes on by itself."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Effective:
    """The spec that is run."""

    spec: FineTuneJobSpec
    profile: ProfileView | None
    image: str
    config_hash: str

    @property
    def profile_spec(self) -> FineTuneProfileSpec:
        """The profile's spec; an empty one where there is none."""
        return self.profile.spec if self.profile else FineTuneProfileSpec()

    @property
    def gpus(self) -> int:
        """GPUs of the job, in all of its pods."""
        return self.spec.resources.nodes * self.spec.resources.gpus


def effective_spec(job: JobView, profiles: tuple[ProfileView, ...], default_image: str | None) -> Effective | Problem:
    """Return what to run, or what stands in its way."""
    profile = _snapshot(job) if job.status.resolved else _choose(job, profiles)
    if isinstance(profile, Problem):
        return profile
    merged = laid_over(_applicable(profile.spec.defaults or {}, job.spec), job.spec) if profile else job.spec
    try:
        spec = FineTuneJobSpec.model_validate(merged)
    except ValidationError as error:
        return Problem(Reason.INVALID_SPEC, _first_error(error))
    refusal = endpoint_refusal(spec, profile) or (next(_refusals(job, spec, profile), None) if profile else None)
    if refusal:
        return Problem(Reason.PROFILE_REFUSED, refusal)
    if len(spec.to_json().encode()) > MAX_BYTES - _CONFIG_HEADROOM:
        return Problem(
            Reason.CONFIG_TOO_LARGE,
            "the spec exceeds the 60 KiB that reach a pod: shorten evaluation.samples.prompts",
        )
    image = spec.trainer.image or (profile and profile.spec.trainer.image) or default_image
    if not image:
        return Problem(Reason.NO_TRAINER_IMAGE, "no trainer image: set spec.trainer.image or one in the profile")
    return Effective(spec=spec, profile=profile, image=image, config_hash=config_hash(merged))


def _applicable(defaults: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Leave out defaults that would contradict what the job says: they were meant for other jobs."""
    method = spec.get("method", defaults.get("method"))
    kept = {
        key: value
        for key, value in defaults.items()
        if not (key == "lora" and method == "Full") and not (key == "quantization" and method != "QLoRA")
    }
    own = spec.get("hyperparameters", {})
    length = kept.get("hyperparameters", {})
    if "epochs" in own or "maxSteps" in own:
        kept["hyperparameters"] = {k: v for k, v in length.items() if k not in ("epochs", "maxSteps")}
    return kept


def _snapshot(job: JobView) -> ProfileView | Problem | None:
    resolved = job.status.resolved
    if not resolved or not resolved.profile:
        return None
    kept = resolved.profile
    try:
        spec = FineTuneProfileSpec.model_validate(kept.spec, extra="ignore")
    except ValidationError as error:
        return Problem(Reason.INVALID_SPEC, f"status.resolved.profile: {_first_error(error)}")
    return ProfileView(name=kept.name, generation=kept.generation, is_default=False, spec=spec)


def _choose(job: JobView, profiles: tuple[ProfileView, ...]) -> ProfileView | Problem | None:
    name = job.spec.get("profile")
    if name:
        found = next((profile for profile in profiles if profile.name == name), None)
        return found or Problem(
            Reason.PROFILE_NOT_FOUND, f"spec.profile: there is no FineTuneProfile {name!r}; the job waits for it"
        )
    defaults = sorted(profile.name for profile in profiles if profile.is_default)
    if len(defaults) > 1:
        return Problem(
            Reason.SEVERAL_DEFAULT_PROFILES,
            f"the profiles {', '.join(defaults)} are all marked as default: name one in spec.profile",
        )
    if defaults:
        return next(profile for profile in profiles if profile.is_default)
    if profiles:
        names = ", ".join(sorted(profile.name for profile in profiles))
        return Problem(Reason.PROFILE_REQUIRED, f"no profile is the default: name one in spec.profile ({names})")
    return None


def _refusals(job: JobView, spec: FineTuneJobSpec, profile: ProfileView) -> Iterator[str]:
    rules, name = profile.spec, profile.name
    nodes, gpus = spec.resources.nodes, spec.resources.nodes * spec.resources.gpus
    if rules.namespaces is not None and not _matches(job.namespace, rules.namespaces):
        yield f"profile {name!r} may not be used from namespace {job.namespace!r}"
    if rules.limits.max_gpus is not None and gpus > rules.limits.max_gpus:
        yield f"spec.resources asks for {gpus} GPUs, profile {name!r} allows {rules.limits.max_gpus}"
    if rules.limits.max_nodes is not None and nodes > rules.limits.max_nodes:
        yield f"spec.resources.nodes is {nodes}, profile {name!r} allows {rules.limits.max_nodes}"
    allowed = rules.limits.allowed_models
    if allowed is not None and not _matches(spec.model.uri, allowed):
        yield f"spec.model.uri {spec.model.uri} is not among the models of profile {name!r}: {', '.join(allowed)}"
    image, images = spec.trainer.image, rules.limits.allowed_images or ()
    if image and image != rules.trainer.image and not _matches(image, images):
        yield f"spec.trainer.image {image} is not allowed by profile {name!r}"
    prefixes = rules.limits.allowed_output_prefixes
    if prefixes is not None and not any(_below(spec.output.uri, prefix) for prefix in prefixes):
        yield f"spec.output.uri {spec.output.uri} is not below a prefix of profile {name!r}: {', '.join(prefixes)}"


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _below(uri: str, prefix: str) -> bool:
    # A prefix ends at a path border, so that s3://team-a does not open s3://team-attic.
    folder = prefix.rstrip("/") + "/"
    return (uri.rstrip("/") + "/").startswith(folder) and "/../" not in uri + "/"


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}"
