"""Which profile applies, whether it allows the job, and the spec that results.

Precedence: the job's own spec, then the profile's defaults, then the types' defaults. Once a run has begun its
profile is the snapshot in status.resolved, and what came from its defaults stands there as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_contract.nested import laid_over
from finetune_contract.run_config import MAX_BYTES
from finetune_operator.api.conditions import Reason
from finetune_operator.api.hashing import config_hash
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.quantization_rules import quantization_rules
from finetune_operator.api.rules import violations
from finetune_operator.api.views import JobView, ProfileView
from finetune_operator.policy.endpoints import endpoint_refusal
from finetune_operator.policy.limits import bounded, refusals

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
    defaults: dict[str, Any]
    """What the profile's defaults have filled in."""

    @property
    def profile_spec(self) -> FineTuneProfileSpec:
        """The profile's spec; an empty one where there is none."""
        return self.profile.spec if self.profile else FineTuneProfileSpec()

    @property
    def gpus(self) -> int:
        """GPUs of the job, in all of its pods."""
        return self.spec.resources.nodes * self.spec.resources.gpus


def effective_spec(
    job: JobView, profiles: tuple[ProfileView, ...], default_image: str | None, *, profile_required: bool = True
) -> Effective | Problem:
    """Return what to run, or what stands in its way."""
    profile = _snapshot(job) if job.status.resolved else _choose(job, profiles, required=profile_required)
    if isinstance(profile, Problem):
        return profile
    merged = laid_over(_applicable(profile.spec.defaults or {}, job.spec), job.spec) if profile else job.spec
    try:
        spec = FineTuneJobSpec.model_validate(merged)
    except ValidationError as error:
        return Problem(Reason.INVALID_SPEC, _first_error(error))
    if problem := _problem(job, spec, profile):
        return problem
    spec = bounded(spec, profile.spec.limits) if profile else spec
    image = spec.trainer.image or (profile and profile.spec.trainer.image) or default_image
    if not image:
        return Problem(Reason.NO_TRAINER_IMAGE, "no trainer image: set spec.trainer.image or one in the profile")
    return Effective(
        spec=_on_fewer_nodes(spec, job),
        profile=profile,
        image=image,
        config_hash=config_hash(merged),
        defaults=_without(merged, job.spec),
    )


def _problem(job: JobView, spec: FineTuneJobSpec, profile: ProfileView | None) -> Problem | None:
    """Return why a spec that parses cannot be run, or None."""
    refusal = endpoint_refusal(spec, profile) or (next(refusals(job, spec, profile), None) if profile else None)
    if refusal:
        return Problem(Reason.PROFILE_REFUSED, refusal)
    if unknown := _unknown_volumes(spec, profile):
        return Problem(Reason.INVALID_SPEC, f"spec.podTemplate mounts {unknown[0]}, which is none of its volumes")
    if len(spec.to_json().encode()) > MAX_BYTES - _CONFIG_HEADROOM:
        return Problem(
            Reason.CONFIG_TOO_LARGE,
            "the spec exceeds the 60 KiB that reach a pod: shorten evaluation.samples.prompts",
        )
    return None


def _without(merged: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return what one object has and another one, below it, has not."""
    rest: dict[str, Any] = {}
    for key, value in merged.items():
        inside = isinstance(value, dict) and isinstance(own.get(key), dict)
        if inside and (below := _without(value, own[key])):
            rest[key] = below
        elif key not in own:
            rest[key] = value
    return rest


def _on_fewer_nodes(spec: FineTuneJobSpec, job: JobView) -> FineTuneJobSpec:
    """Return the spec with the nodes that are asked for since there was no quota for all."""
    fewer = job.status.resolved.nodes if job.status.resolved else None
    if fewer is None:
        return spec
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={"nodes": fewer})})


def _applicable(defaults: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Leave out defaults that would contradict what the job says: they were meant for other jobs."""
    method = spec.get("method", defaults.get("method"))
    kept = {
        key: value
        for key, value in defaults.items()
        if not (key == "lora" and method == "Full") and not (key == "quantization" and not _goes_with(defaults, spec))
    }
    own = spec.get("hyperparameters", {})
    length = kept.get("hyperparameters", {})
    if "epochs" in own or "maxSteps" in own:
        kept["hyperparameters"] = {k: v for k, v in length.items() if k not in ("epochs", "maxSteps")}
    return kept


def _goes_with(defaults: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether a default of how the base model is held is for jobs like this one."""
    merged = {"spec": laid_over(defaults, spec)}
    return not any(violations(merged, in_cluster=True, rules=tuple(quantization_rules())))


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


def _choose(job: JobView, profiles: tuple[ProfileView, ...], *, required: bool) -> ProfileView | Problem | None:
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
    if profiles and required:
        names = ", ".join(sorted(profile.name for profile in profiles))
        return Problem(Reason.PROFILE_REQUIRED, f"no profile is the default: name one in spec.profile ({names})")
    return None


def _unknown_volumes(spec: FineTuneJobSpec, profile: ProfileView | None) -> list[str]:
    """Return what podTemplate mounts and does not have, the profile's volumes counted."""
    templates = [template for template in (profile and profile.spec.pod_template, spec.pod_template) if template]
    known = {volume.name for template in templates for volume in template.volumes or ()}
    mounts = [mount.name for template in templates for mount in template.volume_mounts or ()]
    return [name for name in mounts if name not in known]


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}"
