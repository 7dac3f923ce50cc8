"""Whether a manifest is one that the API server would take, before it is sent: types first, then the rules.

The types and rules are the API's own (`finetune_operator.api`), so that the answers here and there agree; a test
gives both the same manifests.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from finetune_contract.nested import laid_over
from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.rules import PROFILE_RULES, violations
from finetune_operator.cli.problems import Problem, type_problems

_KINDS = (c.JOB_KIND, c.PROFILE_KIND)
_TOP_LEVEL = {"apiVersion", "kind", "metadata", "spec", "status"}
# What a job must have of its own: a profile's defaults are looked at as part of such a job.
_REQUIRED = {
    "method": "LoRA",
    "model": {"uri": "hf://organisation/name"},
    "dataset": {"uri": "s3://bucket/data.jsonl"},
    "output": {"uri": "s3://bucket/output"},
}


def is_ours(value: Any) -> bool:
    """Whether a document is meant for this API; others, as the Secret beside a job, are kubectl's."""
    if not isinstance(value, dict):
        return True
    group = str(value.get("apiVersion", "")).partition("/")[0]
    foreign = value.get("apiVersion") and value.get("kind") and group != c.GROUP
    return not foreign or bool(difflib.get_close_matches(str(value["kind"]), _KINDS, n=1, cutoff=0.8))


def problems_of(value: Any, *, in_cluster: bool = True) -> list[Problem]:
    """Return everything that is wrong with a document."""
    if not isinstance(value, dict):
        return [Problem("", "must be a mapping that begins with apiVersion, kind, metadata and spec")]
    wrong_kind = list(_kind_problems(value))
    if wrong_kind:
        return wrong_kind
    found = [*_object_problems(value)]
    if "spec" in value:
        check = _job_problems if value["kind"] == c.JOB_KIND else _profile_problems
        found += check(value, in_cluster=in_cluster)
    return list(dict.fromkeys(found))


def _kind_problems(value: dict[str, Any]) -> Iterator[Problem]:
    version, kind = value.get("apiVersion"), value.get("kind")
    if version != c.API_VERSION:
        yield Problem("apiVersion", _instead(version, c.API_VERSION))
    if kind not in _KINDS:
        close = difflib.get_close_matches(str(kind), _KINDS, n=1)
        yield Problem("kind", _instead(kind, close[0] if close else " or ".join(_KINDS)))


def _instead(given: Any, wanted: str) -> str:
    return f"is missing: write {wanted}" if given is None else f"must be {wanted} (is {given})"


def _object_problems(value: dict[str, Any]) -> Iterator[Problem]:
    for name in value.keys() - _TOP_LEVEL:
        inside = "; it belongs under spec" if name in _spec_fields(value) else ""
        yield Problem(name, f"unknown field{inside}")
    metadata = value.get("metadata")
    if not isinstance(metadata, dict) or not (metadata.get("name") or metadata.get("generateName")):
        yield Problem("metadata.name", "is missing")
    elif not isinstance(metadata.get("name", ""), str):
        yield Problem("metadata.name", f'must be text: put it in quotes, "{metadata["name"]}"')
    if "spec" not in value:
        yield Problem("spec", "is missing")


def _spec_fields(value: dict[str, Any]) -> set[str]:
    model = FineTuneJobSpec if value["kind"] == c.JOB_KIND else FineTuneProfileSpec
    return {field.alias or name for name, field in model.model_fields.items()}


def _job_problems(value: dict[str, Any], *, in_cluster: bool) -> Iterator[Problem]:
    of_types = type_problems(FineTuneJobSpec, value["spec"], at=("spec",))
    yield from of_types
    said = {problem.field for problem in of_types}
    for field, message in violations(_named(value), in_cluster=in_cluster):
        if field not in said:
            yield Problem(field, message.removeprefix(f"{field} "))


def _named(value: dict[str, Any]) -> dict[str, Any]:
    """Return the job with the name that the API server would make from generateName."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("generateName"):
        # Without a name there is nothing to say about its form.
        return value if isinstance(metadata, dict) and metadata.get("name") else {**value, "metadata": {"name": "x"}}
    return {**value, "metadata": {"name": f"{metadata['generateName']}xxxxx", **metadata}}


def _profile_problems(value: dict[str, Any], *, in_cluster: bool) -> Iterator[Problem]:
    yield from type_problems(FineTuneProfileSpec, value["spec"], at=("spec",))
    for field, message in violations(value, in_cluster=in_cluster, rules=PROFILE_RULES):
        yield Problem(field, message)
    defaults = value["spec"].get("defaults") if isinstance(value["spec"], dict) else None
    if not isinstance(defaults, dict):
        return
    if "profile" in defaults:
        yield Problem("spec.defaults.profile", "a profile cannot name a profile: remove it")

    job = {"metadata": {"name": "x"}, "spec": laid_over(_REQUIRED, defaults)}
    for problem in _job_problems(job, in_cluster=in_cluster):
        yield Problem(problem.field.replace("spec", "spec.defaults", 1), problem.text)
