"""Manifests, good and bad, for twin tests: `finetune validate` and the real API server must give the same answer.

`field` is where the problem is, None for a good manifest. `sentence` is what the command line says; where `shared`
is set, the API server says the same sentence, since the rule is one of `finetune_operator.api.rules`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

REMOVED = object()
"""As a value of `job(...)`: the field is left out."""


@dataclass(frozen=True)
class Case:
    """One manifest and the answer to it."""

    id: str
    manifest: dict[str, Any]
    field: str | None = None
    sentence: str = ""
    shared: bool = False


def job(changes: dict[str, Any] | None = None, *, name: str = "case") -> dict[str, Any]:
    """Return the smallest good job, with values set at dotted paths."""
    manifest: dict[str, Any] = {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "method": "LoRA",
            "model": {"uri": "hf://organisation/name"},
            "dataset": {"uri": "s3://data/train.jsonl"},
            "output": {"uri": "s3://models/out"},
        },
    }
    return _changed(manifest, changes or {})


def profile(spec: dict[str, Any], *, name: str = "pool") -> dict[str, Any]:
    """Return a profile."""
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": name},
        "spec": spec,
    }


def _changed(manifest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changed = deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = changed
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is REMOVED:
            node.pop(last, None)
        else:
            node[last] = value
    return changed


def _good(name: str, **changes: Any) -> Case:
    return Case(name, job({path.replace("__", "."): value for path, value in changes.items()}))


def _bad(name: str, field: str, value: Any, sentence: str) -> Case:
    """A bad value that the types refuse: each reader has words of its own."""
    return Case(name, job({field: value}), field, sentence)


def _rule(name: str, field: str, changes: dict[str, Any], sentence: str, *, job_name: str = "case") -> Case:
    """A manifest that breaks a rule: both readers say the same."""
    return Case(name, job(changes, name=job_name), field, sentence, shared=True)


_CREDENTIALS = "must not carry credentials or a query"
_HP = "spec.hyperparameters"

GOOD: tuple[Case, ...] = (
    _good("smallest"),
    _good("qlora", spec__method="QLoRA", spec__quantization={"type": "nf4", "doubleQuant": False}),
    _good("full", spec__method="Full", spec__hyperparameters={"learningRate": 1e-5}),
    _good("lora-fields", spec__lora={"rank": 8, "alpha": 16, "dropout": 0.05, "targetModules": ["q_proj", "v_proj"]}),
    _good(
        "lora-variants",
        spec__lora={
            "rslora": True,
            "dora": True,
            "initialization": "gaussian",
            "loraPlusRatio": 16,
            "excludeModules": ["down_proj"],
            "modulesToSave": ["lm_head"],
        },
    ),
    _good("pissa", spec__lora={"initialization": "pissa", "dora": False}),
    _good("new-tokens", spec__model={"uri": "s3://models/base", "newTokens": ["<call>", "</call>"]}),
    _good("optimizer", spec__hyperparameters={"optimizer": "pagedAdamw8bit"}),
    _good("dpo", spec__objective="DPO", spec__dataset__format="preference", spec__hyperparameters={"beta": 0.2}),
    _good("orpo-format-detected", spec__objective="ORPO"),
    _good("epochs", spec__hyperparameters={"epochs": 0.5}),
    _good("max-steps", spec__hyperparameters={"maxSteps": 100}),
    _good("micro-batch-divides", spec__hyperparameters={"batchSize": 12, "microBatchSize": 4}),
    _good("micro-batch-divides-16", spec__hyperparameters={"microBatchSize": 8}),
    _good("pvc", spec__dataset__uri="pvc://claim/data.jsonl", spec__output__uri="pvc://claim"),
    _good("s3-model", spec__model={"uri": "s3://models/base", "secretRef": {"name": "s3"}}),
    _good("quantities", spec__resources={"cpu": 2, "memory": "16Gi", "gpuMemory": "80Gi", "gpusPerNode": 0}),
    _good("data-https", spec__dataset__uri="https://data.example.com:8443/files/train.jsonl.gz"),
    _good("data-hub", spec__dataset={"uri": "hf://datasets/org/data", "revision": "v1", "split": "test"}),
    _good("data-hub-pattern", spec__dataset__uri="hf://datasets/org/data/de/train-*.parquet"),
    _good("data-pattern", spec__dataset__uri="s3://data/train-*.parquet"),
    _good(
        "sources",
        spec__dataset={
            "sources": [{"uri": "s3://data/a"}, {"uri": "pvc://claim/b", "weight": 0.5, "format": "shareGPT"}],
            "validation": {"uri": "s3://data/test.jsonl"},
            "columns": {"prompt": "question"},
            "systemPrompt": "Be brief.",
            "maxSamples": 100,
        },
    ),
    _good("several-gpus", spec__resources={"nodes": 2, "gpusPerNode": 2}, spec__hyperparameters={"microBatchSize": 4}),
    _good("milli-cpu", spec__resources={"cpu": "500m"}),
    _good("longest-name", metadata__name="a" * 40),
    _good("exact-match", spec__evaluation={"metrics": ["exactMatch"], "samples": {"prompts": ["Hello"]}}),
    _good("toleration", spec__scheduling={"tolerations": [{"key": "gpu", "operator": "Exists"}]}),
    Case("profile", profile({"limits": {"maxGpus": 1}, "storage": {"endpoint": "https://s3.example.com"}})),
    Case("profile-empty", profile({})),
    Case("profile-defaults", profile({"defaults": {"resources": {"gpusPerNode": 0}}})),
)

BAD_TYPES: tuple[Case, ...] = (
    _bad("method-unknown", "spec.method", "PrefixTuning", "must be LoRA, QLoRA or Full"),
    _bad("method-case", "spec.method", "lora", "did you mean LoRA?"),
    _bad("method-missing", "spec.method", REMOVED, "is missing"),
    _bad("model-missing", "spec.model", REMOVED, "is missing"),
    _bad("dataset-missing", "spec.dataset", REMOVED, "is missing"),
    _bad("output-missing", "spec.output", REMOVED, "is missing"),
    _bad("uri-empty", "spec.model.uri", "", "must not be empty"),
    _bad("uri-number", "spec.model.uri", 3, "must be text (is 3)"),
    _bad("uri-too-long", "spec.model.uri", "s3://models/" + "x" * 1024, "must have at most 1024 characters"),
    _bad("rank-zero", "spec.lora.rank", 0, "must be at least 1 (is 0)"),
    _bad("rank-negative", "spec.lora.rank", -8, "must be at least 1 (is -8)"),
    _bad("rank-huge", "spec.lora.rank", 5000, "must be at most 1024 (is 5000)"),
    _bad("rank-text", "spec.lora.rank", "16", "must be a whole number"),
    _bad("rank-fraction", "spec.lora.rank", 1.5, "must be a whole number (is 1.5)"),
    _bad("alpha-zero", "spec.lora.alpha", 0, "must be more than 0 (is 0)"),
    _bad("dropout-one", "spec.lora.dropout", 1, "must be less than 1 (is 1)"),
    _bad("modules-empty", "spec.lora.targetModules", [], "must not be empty"),
    _bad("modules-text", "spec.lora.targetModules", "all-linear", "must be a list"),
    _bad("modules-left-out-text", "spec.lora.excludeModules", "q_proj", "must be a list"),
    _bad("initialization-unknown", "spec.lora.initialization", "svd", "must be default, gaussian, pissa or olora"),
    _bad("lora-plus-below-one", "spec.lora.loraPlusRatio", 0.5, "must be at least 1 (is 0.5)"),
    _bad("new-token-empty", "spec.model.newTokens", [""], "must not be empty"),
    _bad("optimizer-of-transformers", f"{_HP}.optimizer", "adamw_8bit", "did you mean adamw8bit?"),
    _bad("objective-unknown", "spec.objective", "RLHF", "must be SFT, DPO or ORPO"),
    Case("beta-zero", job({"spec.objective": "DPO", f"{_HP}.beta": 0}), f"{_HP}.beta", "must be more than 0 (is 0)"),
    _bad("lora-list", "spec.lora", [], "must be a mapping of names to values"),
    _bad("lora-unknown-field", "spec.lora.rnk", 8, "unknown field: did you mean rank?"),
    Case(
        "quantization-type",
        job({"spec.method": "QLoRA", "spec.quantization": {"type": "int4"}}),
        "spec.quantization.type",
        "must be nf4",
    ),
    _bad("learning-rate-text", f"{_HP}.learningRate", "2e-4", "must be a number"),
    _bad("learning-rate-above-one", f"{_HP}.learningRate", 2, "must be at most 1 (is 2)"),
    _bad("learning-rate-zero", f"{_HP}.learningRate", 0, "must be more than 0 (is 0)"),
    _bad("learning-rate-misplaced", "spec.learningRate", 0.1, "it belongs at spec.hyperparameters.learningRate"),
    _bad("python-name", f"{_HP}.learning_rate", 0.1, "did you mean learningRate?"),
    _bad("batch-zero", f"{_HP}.batchSize", 0, "must be at least 1 (is 0)"),
    _bad("epochs-zero", f"{_HP}.epochs", 0, "must be more than 0 (is 0)"),
    _bad("max-steps-negative", f"{_HP}.maxSteps", -1, "must be at least 1 (is -1)"),
    _bad("scheduler-unknown", f"{_HP}.scheduler", "cos", "did you mean cosine?"),
    _bad("precision-unknown", f"{_HP}.precision", "fp16", "must be bfloat16 or float32"),
    _bad("packing-text", f"{_HP}.packing", "true", "must be true or false"),
    _bad("fraction-one", "spec.dataset.validation.fraction", 1, "must be less than 1 (is 1)"),
    _bad(
        "format-unknown",
        "spec.dataset.format",
        "alpaca",
        "must be messages, shareGPT, promptCompletion, instruction, text or preference",
    ),
    _bad(
        "weight-zero",
        "spec.dataset",
        {"sources": [{"uri": "s3://data/a", "weight": 0}]},
        "must be more than 0 (is 0)",
    ),
    _bad("column-unknown", "spec.dataset.columns", {"question": "q"}, "unknown field"),
    _bad("max-samples-zero", "spec.dataset.maxSamples", 0, "must be at least 1 (is 0)"),
    _bad("metric-unknown", "spec.evaluation.metrics", ["bleu"], "must be exactMatch"),
    _bad("quantity-wrong", "spec.resources.memory", "16 GB", "must be an amount"),
    _bad("quantity-negative", "spec.resources.cpu", -1, "must be an amount"),
    _bad("quantity-fraction", "spec.resources.memory", 1.5, "must be an amount"),
    _bad("gpus-negative", "spec.resources.gpusPerNode", -1, "must be at least 0 (is -1)"),
    _bad("selector-number", "spec.scheduling.nodeSelector", {"pool": 3}, 'put it in quotes, "3"'),
    _bad("grace-zero", "spec.lifecycle.gracePeriodSeconds", 0, "must be at least 1 (is 0)"),
    Case(
        "profile-endpoint",
        profile({"storage": {"endpoint": "s3.example.com"}}),
        "spec.storage.endpoint",
        "must be a URL",
    ),
    Case("profile-unknown-field", profile({"limit": {}}), "spec.limit", "did you mean limits?"),
)

BAD_RULES: tuple[Case, ...] = (
    _rule("name-too-long", "metadata.name", {}, "may have at most 40 characters", job_name="a" * 41),
    _rule("name-digit-first", "metadata.name", {}, "begin with a letter", job_name="7b-run"),
    _rule("name-dots", "metadata.name", {}, "must be lower-case letters, digits and -", job_name="my.job"),
    _rule(
        "lora-with-full",
        "spec",
        {"spec.method": "Full", "spec.lora": {"rank": 8}},
        "lora is for methods LoRA and QLoRA: remove it",
    ),
    _rule("quantization-with-lora", "spec", {"spec.quantization": {"type": "nf4"}}, "quantization is for method QLoRA"),
    _rule(
        "quantization-with-full",
        "spec",
        {"spec.method": "Full", "spec.quantization": {"type": "nf4"}},
        "quantization is for method QLoRA",
    ),
    _rule("dora-pissa", "spec.lora", {"spec.lora": {"dora": True, "initialization": "pissa"}}, "exclude each other"),
    _rule(
        "qlora-olora",
        "spec",
        {"spec.method": "QLoRA", "spec.lora": {"initialization": "olora"}},
        "which QLoRA holds in 4 bits",
    ),
    _rule("preference-sft", "spec", {"spec.dataset.format": "preference"}, "preference is for objectives DPO and ORPO"),
    _rule("dpo-messages", "spec", {"spec.objective": "DPO", "spec.dataset.format": "messages"}, "they need it"),
    _rule("beta-sft", "spec", {f"{_HP}.beta": 0.1}, "hyperparameters.beta is for objectives DPO and ORPO"),
    _rule("epochs-and-steps", _HP, {f"{_HP}.epochs": 3, f"{_HP}.maxSteps": 100}, "epochs and maxSteps exclude"),
    _rule(
        "micro-batch-does-not-divide",
        _HP,
        {f"{_HP}.batchSize": 10, f"{_HP}.microBatchSize": 4},
        "microBatchSize must divide batchSize",
    ),
    _rule("micro-batch-does-not-divide-16", _HP, {f"{_HP}.microBatchSize": 5}, "microBatchSize must divide batchSize"),
    _rule(
        "preferences-on-two-gpus",
        "spec",
        {"spec.resources": {"gpusPerNode": 2}, "spec.objective": "DPO"},
        "objectives other than SFT train on one GPU",
    ),
    _rule("gpus-do-not-divide", "spec", {"spec.resources": {"gpusPerNode": 3}}, "must divide batchSize"),
    _rule("nodes-do-not-divide", "spec", {"spec.resources": {"nodes": 3, "gpusPerNode": 0}}, "must divide batchSize"),
    _rule(
        "micro-batch-larger-than-a-share",
        "spec",
        {"spec.resources": {"gpusPerNode": 4}, f"{_HP}.microBatchSize": 8},
        "must divide each GPU's share of batchSize",
    ),
    _rule("model-file", "spec.model.uri", {"spec.model.uri": "file:///models/x"}, "a pod does not see your disk"),
    _rule("output-file", "spec.output.uri", {"spec.output.uri": "file:///out"}, "a pod does not see your disk"),
    _rule("model-plain-name", "spec.model.uri", {"spec.model.uri": "meta/llama"}, "write hf://organisation/name"),
    _rule("model-hub-page", "spec.model.uri", {"spec.model.uri": "https://hub.example/a/b"}, "write hf://"),
    _rule(
        "uri-and-sources",
        "spec.dataset",
        {"spec.dataset.sources": [{"uri": "s3://data/a"}]},
        "give either uri or sources",
    ),
    _rule(
        "neither-uri-nor-sources", "spec.dataset", {"spec.dataset": {"format": "text"}}, "give either uri or sources"
    ),
    _rule(
        "source-plain-name",
        "spec.dataset.sources[1].uri",
        {"spec.dataset": {"sources": [{"uri": "s3://data/a"}, {"uri": "data.jsonl"}]}},
        "write s3://bucket/path",
    ),
    _rule(
        "validation-uri-and-fraction",
        "spec.dataset.validation",
        {"spec.dataset.validation": {"uri": "s3://data/test.jsonl", "fraction": 0.1}},
        "uri and fraction exclude each other",
    ),
    _rule(
        "validation-file",
        "spec.dataset.validation.uri",
        {"spec.dataset.validation": {"uri": "file:///test.jsonl"}},
        "a pod does not see your disk",
    ),
    _rule("dataset-hub", "spec.dataset.uri", {"spec.dataset.uri": "hf://org/data"}, "hf://datasets/organisation/name"),
    _rule("dataset-http", "spec.dataset.uri", {"spec.dataset.uri": "http://example.com/a"}, "or https://host/file"),
    _rule("dataset-no-file", "spec.dataset.uri", {"spec.dataset.uri": "https://example.com/"}, "or https://host/file"),
    _rule("dataset-user", "spec.dataset.uri", {"spec.dataset.uri": "https://me@example.com/a"}, _CREDENTIALS),
    _rule("output-https", "spec.output.uri", {"spec.output.uri": "https://example.com/a"}, "write s3://bucket/prefix"),
    _rule(
        "split-of-s3",
        "spec.dataset",
        {"spec.dataset.split": "train"},
        "revision and split can only be given for a uri hf://",
    ),
    _rule(
        "revision-of-a-source",
        "spec.dataset.sources[0]",
        {"spec.dataset": {"sources": [{"uri": "s3://data/a", "revision": "v1"}]}},
        "revision can only be given for a uri hf://datasets/",
    ),
    _rule("output-bucket-only", "spec.output.uri", {"spec.output.uri": "s3://models"}, "write s3://bucket/prefix"),
    _rule("bucket-capitals", "spec.dataset.uri", {"spec.dataset.uri": "s3://Data/x"}, "write s3://bucket/path"),
    _rule("credentials", "spec.dataset.uri", {"spec.dataset.uri": "s3://key:secret@data/x"}, _CREDENTIALS),
    _rule("query", "spec.output.uri", {"spec.output.uri": "s3://models/x?versionId=1"}, _CREDENTIALS),
)

CASES = (*GOOD, *BAD_TYPES, *BAD_RULES)
