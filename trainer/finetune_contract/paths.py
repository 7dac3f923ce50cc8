"""Where everything lies: under the output's URI in object storage, and inside a pod.

`<output.uri>/run-<n>/` belongs to one run of one job; `owner.json` claims it. The manifest is written last: its
presence means that the outputs are complete.
"""

from __future__ import annotations

OWNER = "owner.json"
PREPARED_DIR = "prepared"
PREPARED = "prepared/prepared.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT_MANIFEST = "checkpoint.json"
ADAPTER = "adapter"
MERGED = "merged"
GGUF = "gguf"
MODELFILE = "gguf/Modelfile"
EVALUATION = "evaluation.json"
SAMPLES = "samples.jsonl"
SAMPLES_DIR = "samples"
TENSORBOARD = "tensorboard"
WANDB = "wandb"
REPORT = "report.html"
MODEL_CARD = "README.md"
REPEAT = "config.yaml"
MANIFEST = "manifest.json"
HUB = "hub.json"

# Inside a pod: what the operator mounts and the trainer reads.
POD_CONFIG = "/etc/finetune/config.json"
POD_PROGRESS_CA = "/etc/finetune/progress-ca.crt"
POD_PROGRESS_TOKEN = "/var/run/secrets/finetuning.dev/token"  # noqa: S105 - a path
POD_WORK = "/var/lib/finetune/work"
POD_CACHE = "/var/lib/finetune/cache"
POD_CLAIMS = "/var/lib/finetune/claims"
POD_PORT = 29500
"""Where the first pod of an attempt waits for the others."""
POD_TERMINATION_LOG = "/dev/termination-log"

# Environment variables that the operator sets. The first three are Kubeflow Trainer's protocol, which
# transformers' own callback speaks as well (KubeflowCallback).
ENV_PROGRESS_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_PROGRESS_CA = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_PROGRESS_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - a variable's name
ENV_CONFIG = "FINETUNE_CONFIG"
ENV_WORK = "FINETUNE_WORK"
ENV_CACHE = "FINETUNE_CACHE"
ENV_CLAIMS = "FINETUNE_CLAIMS"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
ENV_RENDEZVOUS = "FINETUNE_RENDEZVOUS"
ENV_COLLECTIVE_TIMEOUT = "FINETUNE_COLLECTIVE_TIMEOUT"
ENV_DEEPSPEED_CONFIG = "FINETUNE_DEEPSPEED_CONFIG"
ENV_METRICS_PORT = "FINETUNE_METRICS_PORT"

METRICS_PORT = 9464
"""Port of a training pod's /metrics, named `metrics` there."""


def run_uri(output_uri: str, run: int) -> str:
    """Return the folder of run number `run`: `<output.uri>/run-<n>`."""
    return f"{output_uri.rstrip('/')}/run-{run}"


def checkpoint_dir(attempt: int, step: int) -> str:
    """Return a checkpoint's folder below the run's: every attempt writes under its own prefix, so that a
    zombie of an earlier attempt can never touch a later one's files.
    """
    return f"{CHECKPOINTS}/attempt-{attempt:04d}/step-{step:08d}"


def samples_file(attempt: int) -> str:
    """Return where an attempt keeps its samples, below the run's folder."""
    return f"{SAMPLES_DIR}/attempt-{attempt:04d}.jsonl"


def join(uri: str, *parts: str) -> str:
    """Join URI and relative parts with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
