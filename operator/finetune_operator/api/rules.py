"""Rules that cross fields or need a sentence: one table, two readers.

The API server evaluates `cel` at admission; `finetune validate` and `finetune run` evaluate `holds` on the same
JSON value. A test feeds both the same table of manifests and compares the answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from finetune_operator.api.affinity import affinity_rules
from finetune_operator.api.constants import MAX_NAME_LENGTH
from finetune_operator.api.deepspeed_rules import deepspeed_rules
from finetune_operator.api.evaluation_rules import evaluation_rules
from finetune_operator.api.pod_template import pod_template_rules
from finetune_operator.api.quantization_rules import quantization_rules
from finetune_operator.api.rule import Rule

_BUCKET = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_NAME = "[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_HF = "hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_S3 = f"s3://{_BUCKET}/.+"
_HF_DATASET = f"hf://datasets/{_HF.removeprefix('hf://')}(/.*)?"
_HTTPS = "https://[A-Za-z0-9.-]+(:[0-9]+)?/.+"
_GS = "gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]/.+"
_AZ = "az://[a-z0-9]([a-z0-9-]*[a-z0-9])?/.+"
_PVC = f"pvc://{_NAME}(/.*)?"
_CREDENTIALS = "^[a-z0-9]+://[^/]*@"
_DNS_LABEL = "^[a-z]([-a-z0-9]*[a-z0-9])?$"


def _uri_rules(at: tuple[str, ...], forms: tuple[str, ...], example: str) -> Iterator[Rule]:
    form = f"^({'|'.join(forms)})$"
    yield Rule(
        at,
        f"!self.matches('{_CREDENTIALS}') && !self.contains('?')",
        "a URI must not carry credentials or a query: put them into a Secret and name it in secretRef",
        lambda uri: not re.search(_CREDENTIALS, uri) and "?" not in uri,
    )
    yield Rule(
        at,
        "!self.startsWith('file://')",
        "file:// works with `finetune run` only: a pod does not see your disk; use s3:// or pvc://",
        lambda uri: not uri.startswith("file://"),
        cluster_only=True,
    )
    yield Rule(
        at,
        f"self.startsWith('file://') || self.matches('{_CREDENTIALS}') || self.contains('?') || self.matches('{form}')",
        f"not a URI that is understood here: write {example}",
        lambda uri: bool(
            uri.startswith("file://") or re.search(_CREDENTIALS, uri) or "?" in uri or re.search(form, uri)
        ),
    )


def _data_uri_rules(at: tuple[str, ...]) -> Iterator[Rule]:
    forms = (_S3, _GS, _AZ, _PVC, _HF_DATASET, _HTTPS)
    examples = "s3://bucket/path, gs://bucket/path, az://container/path, pvc://claim/path"
    yield from _uri_rules(at, forms, f"{examples}, hf://datasets/organisation/name or https://host/file")
    # What would be ignored is refused.
    names = ("revision", "split") if at[-2:] == ("dataset", "uri") else ("revision",)
    given = " || ".join(f"has(self.{name})" for name in names)
    yield Rule(
        at[:-1],
        f"!({given}) || (has(self.uri) && self.uri.startsWith('hf://datasets/'))",
        f"{' and '.join(names)} can only be given for a uri hf://datasets/…: remove what is there, or name files by a path or pattern",
        lambda place: not set(names) & set(place) or str(place.get("uri", "")).startswith("hf://datasets/"),
    )


def _unset(value: dict[str, Any], *names: str) -> bool:
    return not all(name in value for name in names)


_DEFAULT_START = "!(has(self.initialization) && self.initialization in ['pissa', 'olora'])"


def _default_start(lora: dict[str, Any]) -> bool:
    return lora.get("initialization") not in ("pissa", "olora")


_GPUS = "(has(self.resources.gpusPerNode) ? self.resources.gpusPerNode : 1)"
_SHARES = f"((has(self.resources.nodes) ? self.resources.nodes : 1) * ({_GPUS} > 0 ? {_GPUS} : 1))"
_BATCH = "(has(self.hyperparameters) && has(self.hyperparameters.batchSize) ? self.hyperparameters.batchSize : 16)"


def _batch(spec: dict[str, Any]) -> int:
    size: int = spec.get("hyperparameters", {}).get("batchSize", 16)
    return size


def _shares(spec: dict[str, Any]) -> int:
    resources = spec.get("resources", {})
    shares: int = resources.get("nodes", 1) * (resources.get("gpusPerNode", 1) or 1)
    return shares


def _shares_are_whole(spec: dict[str, Any]) -> bool:
    micro_batch = spec.get("hyperparameters", {}).get("microBatchSize")
    return micro_batch is None or _shares(spec) == 1 or _batch(spec) % (_shares(spec) * micro_batch) == 0


JOB_RULES: tuple[Rule, ...] = (
    Rule(
        (),
        f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
        f"metadata.name may have at most {MAX_NAME_LENGTH} characters: the names of its pods are made from it",
        lambda job: len(job.get("metadata", {}).get("name", "")) <= MAX_NAME_LENGTH,
    ),
    Rule(
        (),
        f"self.metadata.name.matches('{_DNS_LABEL}')",
        "metadata.name must be lower-case letters, digits and -, and begin with a letter: pods are named after it",
        lambda job: bool(re.search(_DNS_LABEL, job.get("metadata", {}).get("name", ""))),
    ),
    Rule(
        ("spec",),
        "self.method != 'Full' || !has(self.lora)",
        "lora is for methods LoRA and QLoRA: remove it, or set method: LoRA",
        lambda spec: spec.get("method") != "Full" or "lora" not in spec,
    ),
    *quantization_rules(),
    Rule(
        ("spec",),
        f"self.method != 'QLoRA' || !has(self.lora) || {_DEFAULT_START}".replace("self.init", "self.lora.init"),
        "lora.initialization pissa and olora change the base model's weights, which QLoRA holds in 4 bits: "
        "use default or gaussian, or method: LoRA",
        lambda spec: spec.get("method") != "QLoRA" or _default_start(spec.get("lora", {})),
    ),
    Rule(
        ("spec", "lora"),
        f"!(has(self.dora) && self.dora) || {_DEFAULT_START}",
        "dora and initialization pissa or olora exclude each other: keep one",
        lambda lora: lora.get("dora") is not True or _default_start(lora),
    ),
    Rule(
        ("spec",),
        "!has(self.dataset.format) || "
        "(self.dataset.format == 'preference') == (has(self.objective) && self.objective != 'SFT')",
        "dataset.format preference is for objectives DPO, ORPO and KTO, and they need it: set objective, or another format",
        lambda spec: (
            "format" not in spec.get("dataset", {})
            or (spec["dataset"]["format"] == "preference") == (spec.get("objective", "SFT") != "SFT")
        ),
    ),
    Rule(
        ("spec",),
        "!has(self.hyperparameters) || !has(self.hyperparameters.beta) || "
        "(has(self.objective) && self.objective != 'SFT')",
        "hyperparameters.beta is for objectives DPO, ORPO and KTO: remove it, or set objective",
        lambda spec: "beta" not in spec.get("hyperparameters", {}) or spec.get("objective", "SFT") != "SFT",
    ),
    Rule(
        ("spec",),
        "self.method == 'QLoRA' || !has(self.output.merged) || !has(self.output.merged.base)",
        "output.merged.base is for method QLoRA: other methods have one base only, remove it",
        lambda spec: spec.get("method") == "QLoRA" or "base" not in spec.get("output", {}).get("merged", {}),
    ),
    Rule(
        ("spec", "hyperparameters"),
        "!(has(self.epochs) && has(self.maxSteps))",
        "epochs and maxSteps exclude each other: keep one",
        lambda hp: _unset(hp, "epochs", "maxSteps"),
    ),
    Rule(
        ("spec", "hyperparameters"),
        "!has(self.microBatchSize) || (has(self.batchSize) ? self.batchSize : 16) % self.microBatchSize == 0",
        "microBatchSize must divide batchSize (16 when absent): a step is made of whole micro-batches",
        lambda hp: "microBatchSize" not in hp or hp.get("batchSize", 16) % hp["microBatchSize"] == 0,
    ),
    *evaluation_rules(),
    *pod_template_rules(("spec", "podTemplate")),
    *affinity_rules(("spec", "scheduling", "affinity")),
    *deepspeed_rules(),
    Rule(
        ("spec",),
        f"!has(self.resources) || {_BATCH} % {_SHARES} == 0",
        "nodes times gpusPerNode must divide batchSize (16 when absent): the GPUs share every batch evenly",
        lambda spec: _batch(spec) % _shares(spec) == 0,
    ),
    Rule(
        ("spec",),
        f"!has(self.resources) || !has(self.hyperparameters) || !has(self.hyperparameters.microBatchSize) || "
        f"{_SHARES} == 1 || {_BATCH} % ({_SHARES} * self.hyperparameters.microBatchSize) == 0",
        "microBatchSize must divide each GPU's share of batchSize (16 when absent): batchSize / nodes / gpusPerNode",
        _shares_are_whole,
    ),
    Rule(
        ("spec", "resources"),
        "!has(self.minNodes) || self.minNodes <= (has(self.nodes) ? self.nodes : 1)",
        "minNodes may not exceed nodes (1 when absent)",
        lambda resources: resources.get("minNodes", 1) <= resources.get("nodes", 1),
    ),
    *_uri_rules(
        ("spec", "model", "uri"),
        (_HF, _S3, _GS, _AZ, _PVC),
        "hf://organisation/name, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/path",
    ),
    *_uri_rules(
        ("spec", "output", "uri"),
        (_S3, _GS, _AZ, _PVC),
        "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/path",
    ),
    Rule(
        ("spec", "dataset"),
        "has(self.uri) != (has(self.sources) && size(self.sources) > 0)",
        "give either uri or sources: uri for one source, sources for several with their weights",
        lambda dataset: ("uri" in dataset) != bool(dataset.get("sources")),
    ),
    Rule(
        ("spec", "dataset", "validation"),
        "!(has(self.uri) && has(self.fraction))",
        "uri and fraction exclude each other: a given validation set is held out as a whole",
        lambda validation: _unset(validation, "uri", "fraction"),
    ),
    *_data_uri_rules(("spec", "dataset", "uri")),
    *_data_uri_rules(("spec", "dataset", "sources", "[]", "uri")),
    *_data_uri_rules(("spec", "dataset", "validation", "uri")),
    *_uri_rules(
        ("spec", "checkpoint", "resumeFrom"),
        ("Latest", "None", _S3, _GS, _AZ, _PVC),
        "Latest, None, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/path",
    ),
    *_uri_rules(
        ("spec", "evaluation", "forgetting", "uri"),
        (_S3, _GS, _AZ, _PVC),
        "s3://bucket/path, gs://bucket/path, az://container/path or pvc://claim/path",
    ),
)

PROFILE_RULES: tuple[Rule, ...] = (
    *pod_template_rules(("spec", "podTemplate")),
    Rule(
        ("spec", "cache"),
        "!(has(self.claimName) && has(self.hostPath))",
        "claimName and hostPath name two places for one cache: keep one of them",
        lambda cache: not {"claimName", "hostPath"} <= cache.keys(),
    ),
)
"""The rules of a FineTuneProfile."""


def violations(
    manifest: dict[str, Any], *, in_cluster: bool, rules: tuple[Rule, ...] = JOB_RULES
) -> Iterator[tuple[str, str]]:
    """Yield (field path, message) of each rule that a manifest breaks; values of a wrong type are skipped,
    since the types report them.
    """
    for rule in rules:
        if rule.cluster_only and not in_cluster:
            continue
        for field, value in _at(manifest, rule.at):
            try:
                holds = rule.holds(value)
            except (TypeError, AttributeError, KeyError, ZeroDivisionError):
                continue
            if not holds:
                yield field or "metadata.name", rule.message


def _at(value: Any, path: tuple[str, ...], field: str = "") -> Iterator[tuple[str, Any]]:
    """Yield field and value of each place that a path stands for."""
    if not path:
        yield field, value
    elif path[0] == "[]":
        for number, item in enumerate(value if isinstance(value, list) else ()):
            yield from _at(item, path[1:], f"{field}[{number}]")
    elif isinstance(value, dict) and value.get(path[0]) is not None:
        yield from _at(value[path[0]], path[1:], f"{field}.{path[0]}".lstrip("."))
