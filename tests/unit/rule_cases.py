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


JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["team"],
    "properties": {"team": {"enum": ["billing", "returns"]}, "tags": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
    "$defs": {"t": {"type": "string", "x-note": 1.5}},
}
JUDGE = {"endpoint": "https://judge.example.com/v1", "model": "judge-1"}
_EVALUATION = "spec.evaluation"
_CREDENTIALS = "must not carry credentials or a query"
_HP = "spec.hyperparameters"
_KEY = {"name": "secret", "key": "token"}
_HOST = {"fieldRef": {"fieldPath": "status.hostIP"}}
_TEMPLATE = "spec.podTemplate"
REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))

AFFINITY = {
    "nodeAffinity": {
        REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]},
        PREFERRED: [
            {"weight": 5, "preference": {"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["8"]}]}}
        ],
    },
    "podAntiAffinity": {
        REQUIRED: [{"labelSelector": {"matchLabels": {"app": "serving"}}, "topologyKey": "kubernetes.io/hostname"}]
    },
}
_NODE_TERM = f"spec.scheduling.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0]"
_POD_TERM = f"spec.scheduling.affinity.podAffinity.{REQUIRED}[0]"


def _on_nodes(requirement: dict[str, Any]) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"spec.scheduling": {"affinity": {"nodeAffinity": {REQUIRED: terms}}}}


def _beside_pods(**term: Any) -> dict[str, Any]:
    term = {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "zone", **term}
    return {"spec.scheduling": {"affinity": {"podAffinity": {REQUIRED: [term]}}}}


GOOD: tuple[Case, ...] = (
    _good("smallest"),
    _good("qlora", spec__method="QLoRA", spec__quantization={"type": "nf4", "doubleQuant": False}),
    _good("fp8", spec__quantization={"type": "fp8"}, spec__hyperparameters={"precision": "bfloat16"}),
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
    _good("zero-stage", spec__method="Full", spec__deepspeed={"zeroStage": 2, "offload": "optimizer"}),
    _good("zero-offload-all", spec__method="Full", spec__deepspeed={"offload": "all"}),
    _good("zero-of-lora", spec__deepspeed={"zeroStage": 3}, spec__lora={"rank": 8, "dora": False}),
    _good("zero-of-qlora", spec__method="QLoRA", spec__deepspeed={"zeroStage": 3}),
    _good(
        "zero-of-ones-own",
        spec__method="Full",
        spec__deepspeed={"zeroStage": 2, "configMapRef": {"name": "team", "key": "ds.json"}},
    ),
    _good("no-zero-of-lora", spec__deepspeed={"zeroStage": 0}, spec__lora={"dora": True}, spec__objective="DPO"),
    _good("dpo", spec__objective="DPO", spec__dataset__format="preference", spec__hyperparameters={"beta": 0.2}),
    _good("orpo-format-detected", spec__objective="ORPO"),
    _good("kto", spec__objective="KTO", spec__dataset__format="preference", spec__hyperparameters={"beta": 0.2}),
    _good("preferences-on-two-gpus", spec__objective="KTO", spec__resources={"gpusPerNode": 2}),
    _good("preferences-shared", spec__objective="DPO", spec__deepspeed={"offload": "optimizer"}),
    _good("epochs", spec__hyperparameters={"epochs": 0.5}),
    _good("max-steps", spec__hyperparameters={"maxSteps": 100}),
    _good("micro-batch-divides", spec__hyperparameters={"batchSize": 12, "microBatchSize": 4}),
    _good("micro-batch-divides-16", spec__hyperparameters={"microBatchSize": 8}),
    _good("pvc", spec__dataset__uri="pvc://claim/data.jsonl", spec__output__uri="pvc://claim"),
    _good("resume-from-nothing", spec__checkpoint={"everyMinutes": 10, "resumeFrom": "None"}),
    _good("resume-from-another-run", spec__checkpoint={"resumeFrom": "s3://models/out/run-1"}),
    _good("early-stopping", spec__evaluation={"earlyStopping": {"patience": 2}, "samples": {"everySteps": 10}}),
    _good(
        "tracking",
        spec__tracking={
            "mlflow": {"trackingUri": "http://mlflow.ml:5000/path", "experiment": "support"},
            "wandb": {"project": "support", "entity": "team", "mode": "offline"},
            "tensorboard": {},
            "secretRef": {"name": "tracking"},
        },
    ),
    _good("s3-model", spec__model={"uri": "s3://models/base", "secretRef": {"name": "s3"}}),
    _good("gcs", spec__dataset__uri="gs://my_data.example/train.jsonl", spec__output__uri="gs://models/out"),
    _good("azure", spec__model__uri="az://models/base", spec__output__uri="az://models/out"),
    _good("affinity", spec__scheduling={"serviceAccountName": "tuning", "affinity": AFFINITY}),
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
    _good("gguf", spec__output={"uri": "s3://models/out", "gguf": {"types": ["f16", "q8_0"]}}),
    _good(
        "merged-original",
        spec__method="QLoRA",
        spec__output={"uri": "s3://models/out", "merged": {"base": "original", "maxShardSize": "500MB"}},
    ),
    _good("hub", spec__output={"uri": "s3://models/out", "hub": {"repo": "org/name", "secretRef": {"name": "hub"}}}),
    _good("regex", spec__evaluation={"metrics": ["regex"], "regex": {"pattern": r"^\w+ \| \d+$"}}),
    _good("json-schema", spec__evaluation={"metrics": ["jsonValid", "jsonSchema"], "jsonSchema": JSON_SCHEMA}),
    _good("rouge", spec__evaluation={"metrics": ["rouge", "exactMatch"]}),
    _good("compare-without-base", spec__evaluation={"compareWithBase": False, "gates": [{"metric": "loss", "max": 2}]}),
    _good(
        "gates",
        spec__evaluation={
            "metrics": ["rouge", "exactMatch"],
            "gates": [
                {"metric": "exactMatch", "min": 0.9},
                {"metric": "loss", "max": -0.1, "relativeTo": "base"},
                {"metric": "rouge", "min": 0, "max": 1},
                {"metric": "perplexity", "max": 20},
                {"metric": "forgetting", "max": 1.05},
            ],
        },
    ),
    _good("own-general-text", spec__evaluation={"forgetting": {"uri": "s3://data/general.txt"}}),
    _good("no-general-text", spec__evaluation={"forgetting": {"enabled": False}}),
    _good(
        "judge",
        spec__evaluation={
            "judge": {**JUDGE, "rubric": "Short is good.", "secretRef": {"name": "llm"}, "timeoutSeconds": 60},
            "gates": [{"metric": "judge", "min": 0.5}],
        },
    ),
    _good("toleration", spec__scheduling={"tolerations": [{"key": "gpu", "operator": "Exists"}]}),
    _good(
        "pod-template",
        spec__podTemplate={
            "labels": {"team": "support"},
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "K", "valueFrom": {"secretKeyRef": _KEY}}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "volumeMounts": [{"name": "data", "mountPath": "/mnt/data"}],
            "securityContext": {"runAsUser": 2000, "supplementalGroups": [3000]},
            "imagePullSecrets": [{"name": "registry"}],
        },
    ),
    _good("queue", spec__scheduling={"queue": "tuning", "queuePriority": "high"}),
    _good("fewer-nodes", spec__resources={"nodes": 4, "minNodes": 2}),
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
    _bad("patience-zero", "spec.evaluation.earlyStopping.patience", 0, "must be at least 1 (is 0)"),
    _bad("wandb-mode", "spec.tracking.wandb", {"project": "a", "mode": "Offline"}, "did you mean offline?"),
    _bad("rank-zero", "spec.lora.rank", 0, "must be at least 1 (is 0)"),
    _bad("rank-negative", "spec.lora.rank", -8, "must be at least 1 (is -8)"),
    _bad("rank-huge", "spec.lora.rank", 5000, "must be at most 1024 (is 5000)"),
    _bad("rank-text", "spec.lora.rank", "16", "must be a whole number"),
    _bad("rank-fraction", "spec.lora.rank", 1.5, "must be a whole number (is 1.5)"),
    _bad("zero-stage-four", "spec.deepspeed.zeroStage", 4, "must be at most 3 (is 4)"),
    _bad("offload-unknown", "spec.deepspeed.offload", "cpu", "must be none, optimizer or all"),
    _bad("alpha-zero", "spec.lora.alpha", 0, "must be more than 0 (is 0)"),
    _bad("dropout-one", "spec.lora.dropout", 1, "must be less than 1 (is 1)"),
    _bad("modules-empty", "spec.lora.targetModules", [], "must not be empty"),
    _bad("modules-text", "spec.lora.targetModules", "all-linear", "must be a list"),
    _bad("modules-left-out-text", "spec.lora.excludeModules", "q_proj", "must be a list"),
    _bad("initialization-unknown", "spec.lora.initialization", "svd", "must be default, gaussian, pissa or olora"),
    _bad("lora-plus-below-one", "spec.lora.loraPlusRatio", 0.5, "must be at least 1 (is 0.5)"),
    _bad("new-token-empty", "spec.model.newTokens", [""], "must not be empty"),
    _bad("optimizer-of-transformers", f"{_HP}.optimizer", "adamw_8bit", "did you mean adamw8bit?"),
    _bad("objective-unknown", "spec.objective", "RLHF", "must be SFT, DPO, ORPO or KTO"),
    Case("beta-zero", job({"spec.objective": "DPO", f"{_HP}.beta": 0}), f"{_HP}.beta", "must be more than 0 (is 0)"),
    _bad("lora-list", "spec.lora", [], "must be a mapping of names to values"),
    _bad("lora-unknown-field", "spec.lora.rnk", 8, "unknown field: did you mean rank?"),
    Case(
        "quantization-type",
        job({"spec.method": "QLoRA", "spec.quantization": {"type": "int4"}}),
        "spec.quantization.type",
        "must be nf4 or fp8",
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
    _bad("gguf-type-unknown", "spec.output.gguf.types", ["q8"], "did you mean q8_0?"),
    _bad("gguf-types-empty", "spec.output.gguf.types", [], "must not be empty"),
    _bad("shard-size", "spec.output.merged.maxShardSize", "5 GB", "must be a size, as 5GB"),
    _bad("hub-url", "spec.output.hub", {"repo": "https://hub.example/org/name"}, "must be a repository, as"),
    _bad("metric-unknown", "spec.evaluation.metrics", ["bleu"], "must be exactMatch, regex, jsonValid, jsonSchema or"),
    Case(
        "json-schema-text",
        job({"spec.evaluation": {"metrics": ["jsonSchema"], "jsonSchema": "{}"}}),
        "spec.evaluation.jsonSchema",
        "must be a mapping of names to values",
    ),
    _bad(
        "gate-metric", "spec.evaluation.gates", [{"metric": "bleu", "min": 1}], "must be loss, perplexity, exactMatch"
    ),
    *(
        Case(
            f"judge-{name}",
            job({"spec.evaluation": {"judge": {**JUDGE, "endpoint": endpoint}}}),
            "spec.evaluation.judge.endpoint",
            "must be a URL",
        )
        for name, endpoint in (
            ("scheme", "ftp://judge.example.com"),
            ("credentials", "https://key@judge.example.com"),
            ("query", "https://judge.example.com/v1?key=1"),
        )
    ),
    Case(
        "pattern-empty",
        job({"spec.evaluation": {"metrics": ["regex"], "regex": {"pattern": ""}}}),
        "spec.evaluation.regex.pattern",
        "must not be empty",
    ),
    _bad("quantity-wrong", "spec.resources.memory", "16 GB", "must be an amount"),
    _bad("quantity-negative", "spec.resources.cpu", -1, "must be an amount"),
    _bad("quantity-fraction", "spec.resources.memory", 1.5, "must be an amount"),
    _bad("gpus-negative", "spec.resources.gpusPerNode", -1, "must be at least 0 (is -1)"),
    Case(
        "secret-of-another-namespace",
        job({"spec.output.secretRef": {"name": "s3", "namespace": "theirs"}}),
        "spec.output.secretRef.namespace",
        "unknown field",
    ),
    Case(
        "secret-by-path",
        job({"spec.model.secretRef": {"name": "theirs/s3"}}),
        "spec.model.secretRef.name",
        "must be a name of small letters",
    ),
    Case(
        "volume-of-another-namespace",
        job({_TEMPLATE: {"volumes": [{"name": "a", "secret": {"secretName": "../s3"}}]}}),
        "spec.podTemplate.volumes[0].secret.secretName",
        "must be a name of small letters",
    ),
    Case("pods-of-another-tenant", job(_beside_pods(namespaces=["b"])), f"{_POD_TERM}.namespaces", "unknown field"),
    Case("all-namespaces", job(_beside_pods(namespaceSelector={})), f"{_POD_TERM}.namespaceSelector", "unknown field"),
    _bad("selector-number", "spec.scheduling.nodeSelector", {"pool": 3}, 'put it in quotes, "3"'),
    _bad("queue-is-no-name", "spec.scheduling.queue", "Tuning Queue", "must be a name of small letters"),
    Case(
        "host-path",
        job({_TEMPLATE: {"volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]}}),
        "spec.podTemplate.volumes[0].hostPath",
        "unknown field",
    ),
    _bad("root", "spec.podTemplate.securityContext.runAsUser", 0, "must be at least 1 (is 0)"),
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
    *(
        _rule(f"pod-template-{name}", f"{_TEMPLATE}.{field}", {_TEMPLATE: {part: value}}, sentence)
        for name, field, part, value, sentence in (
            ("our-label", "labels", "labels", {"finetuning.dev/job": "x"}, "are not the user's to set"),
            ("our-annotation", "annotations", "annotations", {"kueue.x-k8s.io/x": "x"}, "are not the user's to set"),
            ("our-variable", "env[0]", "env", [{"name": "PYTHONPATH", "value": "/mnt/x"}], "the trainer's own"),
            ("two-values", "env[0]", "env", [{"name": "A", "value": "1", "valueFrom": _HOST}], "exclude each other"),
            ("our-volume", "volumes[0]", "volumes", [{"name": "tmp", "emptyDir": {}}], "a volume of the operator"),
            ("no-kind", "volumes[0]", "volumes", [{"name": "a"}], "give exactly one of configMap"),
            (
                "out-of-mnt",
                "volumeMounts[0]",
                "volumeMounts",
                [{"name": "a", "mountPath": "/mnt/../etc"}],
                "stays below /mnt",
            ),
        )
    ),
    *(
        _rule(f"affinity-{name}", field, changes, "Gt and Lt one, Exists and DoesNotExist none")
        for name, field, changes in (
            ("in-nothing", f"{_NODE_TERM}.matchExpressions[0]", _on_nodes({"key": "a", "operator": "In"})),
            (
                "exists-values",
                f"{_NODE_TERM}.matchExpressions[0]",
                _on_nodes({"key": "a", "operator": "Exists", "values": ["b"]}),
            ),
            (
                "gt-two",
                f"{_NODE_TERM}.matchExpressions[0]",
                _on_nodes({"key": "a", "operator": "Gt", "values": ["1", "2"]}),
            ),
            (
                "pods-in-nothing",
                f"{_POD_TERM}.labelSelector.matchExpressions[0]",
                _beside_pods(labelSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
            ),
        )
    ),
    _rule("min-nodes", "spec.resources", {"spec.resources": {"minNodes": 2}}, "minNodes may not exceed nodes"),
    _rule("name-too-long", "metadata.name", {}, "may have at most 40 characters", job_name="a" * 41),
    _rule("name-digit-first", "metadata.name", {}, "begin with a letter", job_name="7b-run"),
    _rule("name-dots", "metadata.name", {}, "must be lower-case letters, digits and -", job_name="my.job"),
    _rule(
        "lora-with-full",
        "spec",
        {"spec.method": "Full", "spec.lora": {"rank": 8}},
        "lora is for methods LoRA and QLoRA: remove it",
    ),
    *(
        _rule(f"quantization-{name}", field, changes, sentence)
        for name, field, changes, sentence in (
            ("with-lora", "spec", {"spec.quantization": {"type": "nf4"}}, "quantization is for method QLoRA, but for"),
            ("of-no-type", "spec", {"spec.quantization": {}}, "quantization is for method QLoRA, but for type fp8"),
            (
                "with-full",
                "spec",
                {"spec.method": "Full", "spec.quantization": {"type": "fp8"}},
                "whose base model is frozen: remove it",
            ),
            (
                "fp8-with-qlora",
                "spec",
                {"spec.method": "QLoRA", "spec.quantization": {"type": "fp8"}},
                "fp8 is for method LoRA",
            ),
            (
                "fp8-twice",
                "spec.quantization",
                {"spec.quantization": {"type": "fp8", "doubleQuant": True}},
                "doubleQuant is for type nf4",
            ),
        )
    ),
    *(
        _rule(f"fp8-{name}", "spec", {"spec.quantization": {"type": "fp8"}, **changes}, sentence)
        for name, changes, sentence in (
            ("preferences", {"spec.objective": "DPO"}, "fp8 is for objective SFT"),
            ("precision", {"spec.hyperparameters.precision": "float32"}, "gives its results in bfloat16"),
            ("dora", {"spec.lora": {"dora": True}}, "need the base model's weights in 16 bits"),
            ("pissa", {"spec.lora": {"initialization": "pissa"}}, "need the base model's weights in 16 bits"),
            ("zero", {"spec.deepspeed": {"zeroStage": 3}}, "does not share weights in fp8"),
            ("offload", {"spec.deepspeed": {"offload": "all"}}, "does not share weights in fp8"),
        )
    ),
    *(
        _rule(f"zero-{name}", field, {"spec.method": "Full", **changes}, sentence)
        for name, field, changes, sentence in (
            (
                "qlora",
                "spec",
                {"spec.method": "QLoRA", "spec.deepspeed": {"zeroStage": 2}},
                "zeroStage is 0 or 3 with LoRA and QLoRA",
            ),
            (
                "lora-optimizer",
                "spec",
                {"spec.method": "LoRA", "spec.deepspeed": {"zeroStage": 2}},
                "zeroStage is 0 or 3 with LoRA and QLoRA",
            ),
            (
                "offload-nothing-shared",
                "spec.deepspeed",
                {"spec.deepspeed": {"zeroStage": 1, "offload": "optimizer"}},
                "offload optimizer needs zeroStage 2",
            ),
            (
                "offload-whole-weights",
                "spec.deepspeed",
                {"spec.deepspeed": {"zeroStage": 2, "offload": "all"}},
                "offload all needs zeroStage 3",
            ),
            (
                "8-bit-optimizer",
                "spec",
                {"spec.hyperparameters": {"optimizer": "adamw8bit"}, "spec.deepspeed": {"zeroStage": 1}},
                "optimizer adamw only",
            ),
            (
                "own-config-of-nothing",
                "spec.deepspeed",
                {"spec.deepspeed": {"configMapRef": {"name": "team", "key": "ds.json"}}},
                "configMapRef needs zeroStage 1, 2 or 3",
            ),
            (
                "new-tokens",
                "spec",
                {"spec.model.newTokens": ["<call>"], "spec.deepspeed": {"offload": "all"}},
                "leaves no GPU a whole weight",
            ),
            (
                "dora",
                "spec",
                {"spec.method": "LoRA", "spec.lora": {"dora": True}, "spec.deepspeed": {"zeroStage": 3}},
                "leaves no GPU a whole weight",
            ),
        )
    ),
    _rule("dora-pissa", "spec.lora", {"spec.lora": {"dora": True, "initialization": "pissa"}}, "exclude each other"),
    _rule(
        "qlora-olora",
        "spec",
        {"spec.method": "QLoRA", "spec.lora": {"initialization": "olora"}},
        "which QLoRA holds in 4 bits",
    ),
    _rule(
        "preference-sft",
        "spec",
        {"spec.dataset.format": "preference"},
        "preference is for objectives DPO, ORPO and KTO",
    ),
    _rule("kto-messages", "spec", {"spec.objective": "KTO", "spec.dataset.format": "messages"}, "they need it"),
    _rule("dpo-messages", "spec", {"spec.objective": "DPO", "spec.dataset.format": "messages"}, "they need it"),
    _rule("beta-sft", "spec", {f"{_HP}.beta": 0.1}, "hyperparameters.beta is for objectives DPO, ORPO and KTO"),
    _rule(
        "merged-base-with-lora",
        "spec",
        {"spec.output.merged": {"base": "dequantized"}},
        "output.merged.base is for method QLoRA",
    ),
    _rule("epochs-and-steps", _HP, {f"{_HP}.epochs": 3, f"{_HP}.maxSteps": 100}, "epochs and maxSteps exclude"),
    _rule(
        "micro-batch-does-not-divide",
        _HP,
        {f"{_HP}.batchSize": 10, f"{_HP}.microBatchSize": 4},
        "microBatchSize must divide batchSize",
    ),
    _rule("micro-batch-does-not-divide-16", _HP, {f"{_HP}.microBatchSize": 5}, "microBatchSize must divide batchSize"),
    _rule("regex-without-pattern", _EVALUATION, {f"{_EVALUATION}.metrics": ["regex"]}, "add regex: {pattern: ...}"),
    _rule(
        "regex-without-metric",
        _EVALUATION,
        {f"{_EVALUATION}.metrics": ["rouge"], f"{_EVALUATION}.regex": {"pattern": "x"}},
        "add regex to metrics",
    ),
    _rule("schema-missing", _EVALUATION, {f"{_EVALUATION}.metrics": ["jsonSchema"]}, "add jsonSchema: {type: object"),
    _rule("schema-without-metric", _EVALUATION, {f"{_EVALUATION}.jsonSchema": {}}, "add jsonSchema to metrics"),
    _rule("gate-unbounded", _EVALUATION, {f"{_EVALUATION}.gates": [{"metric": "loss"}]}, "give it min or max"),
    _rule(
        "gate-empty-range",
        _EVALUATION,
        {f"{_EVALUATION}.gates": [{"metric": "loss", "max": 2}, {"metric": "loss", "min": 2, "max": 1.5}]},
        "min must not be above its max",
    ),
    _rule(
        "gate-not-measured",
        _EVALUATION,
        {f"{_EVALUATION}.metrics": ["rouge"], f"{_EVALUATION}.gates": [{"metric": "exactMatch", "min": 0.5}]},
        "bounds something that is not measured: add it to metrics",
    ),
    _rule(
        "gate-against-no-base",
        _EVALUATION,
        {
            f"{_EVALUATION}.compareWithBase": False,
            f"{_EVALUATION}.gates": [{"metric": "loss", "max": 0, "relativeTo": "base"}],
        },
        "has nothing to be held against",
    ),
    *(
        _rule(
            f"gate-on-forgetting-{name}",
            _EVALUATION,
            {_EVALUATION: {**off, "gates": [{"metric": "forgetting", "max": 1.1}]}},
            "or switch forgetting and compareWithBase on",
        )
        for name, off in (("off", {"forgetting": {"enabled": False}}), ("without-base", {"compareWithBase": False}))
    ),
    _rule(
        "forgetting-relative",
        _EVALUATION,
        {f"{_EVALUATION}.gates": [{"metric": "forgetting", "max": 1.1, "relativeTo": "base"}]},
        "as a ratio: remove relativeTo",
    ),
    _rule(
        "forgetting-without-base",
        _EVALUATION,
        {_EVALUATION: {"compareWithBase": False, "forgetting": {"uri": "s3://data/general.txt"}}},
        "remove forgetting.uri",
    ),
    _rule("gate-without-judge", _EVALUATION, {f"{_EVALUATION}.gates": [{"metric": "judge", "min": 1}]}, "set judge"),
    _rule(
        "judge-without-base",
        _EVALUATION,
        {_EVALUATION: {"compareWithBase": False, "judge": JUDGE}},
        "compareWithBase is false: the judge compares with the base",
    ),
    _rule(
        "forgetting-hub",
        f"{_EVALUATION}.forgetting.uri",
        {f"{_EVALUATION}.forgetting.uri": "hf://organisation/text"},
        "write s3://bucket/path",
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
    _rule("gs-bucket-only", "spec.output.uri", {"spec.output.uri": "gs://models"}, "gs://bucket/prefix"),
    _rule("az-account-in-host", "spec.dataset.uri", {"spec.dataset.uri": "az://data@account/x"}, _CREDENTIALS),
    _rule("az-dots", "spec.output.uri", {"spec.output.uri": "az://my.models/x"}, "az://container/prefix"),
    _rule("output-bucket-only", "spec.output.uri", {"spec.output.uri": "s3://models"}, "write s3://bucket/prefix"),
    _rule("resume-word", "spec.checkpoint.resumeFrom", {"spec.checkpoint.resumeFrom": "latest"}, "write Latest, None"),
    _rule(
        "resume-file",
        "spec.checkpoint.resumeFrom",
        {"spec.checkpoint.resumeFrom": "file:///out/run-1"},
        "a pod does not see your disk",
    ),
    _rule("bucket-capitals", "spec.dataset.uri", {"spec.dataset.uri": "s3://Data/x"}, "write s3://bucket/path"),
    _rule("credentials", "spec.dataset.uri", {"spec.dataset.uri": "s3://key:secret@data/x"}, _CREDENTIALS),
    _rule("query", "spec.output.uri", {"spec.output.uri": "s3://models/x?versionId=1"}, _CREDENTIALS),
)

CASES = (*GOOD, *BAD_TYPES, *BAD_RULES)
