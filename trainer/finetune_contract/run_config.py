"""The run configuration: what the operator hands to every stage of the trainer, as one JSON file.

It travels as a pod annotation (at most 64 KiB, no secrets) through a downwardAPI file; `finetune run` writes the
same file. Credentials come as environment variables, one prefix a use.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_contract import paths
from finetune_contract.model import Model
from finetune_contract.spec import TuningSpec

MAX_BYTES = 64 * 1024


class Use(StrEnum):
    """What a credential is for: its environment variables carry this prefix, as `MODEL_AWS_ACCESS_KEY_ID`.

    Without the prefixed variable the plain one counts (`AWS_ACCESS_KEY_ID`), as on a user's own machine.
    """

    MODEL = "MODEL_"
    DATASET = "DATASET_"
    OUTPUT = "OUTPUT_"
    HUB = "HUB_"
    TRACKING = "TRACKING_"
    JUDGE = "JUDGE_"


class JobIdentity(Model):
    """Which attempt of which run of which FineTuneJob this is."""

    name: str
    namespace: str
    uid: str
    run: Annotated[int, Field(ge=1)] = 1
    attempt: Annotated[int, Field(ge=1)] = 1


class Device(Model):
    """What the pods get to compute on."""

    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs a pod; 0 means CPU."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """Training processes a pod on a CPU, for trying out there what several GPUs do; one when absent."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Pods of an attempt."""
    gpu_memory_bytes: int | None = None
    """Memory of one GPU, where it is known before the pod runs: the estimate is held against it."""
    gpu_type: str | None = None
    """The GPU's product, as NVIDIA-H100-80GB-HBM3, where it is known before the pod runs."""

    @property
    def ranks_per_node(self) -> int:
        """Training processes of a pod: one a GPU."""
        return self.gpus or self.processes or 1

    @property
    def ranks(self) -> int:
        """Training processes of an attempt."""
        return self.nodes * self.ranks_per_node


class RunConfig(Model):
    """Everything that a stage needs beside credentials."""

    job: JobIdentity
    spec: TuningSpec
    device: Device = Device()
    cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """What the models in the cache may take; without a limit when absent."""
    config_hash: str
    """sha256 of the spec without lifecycle and priorities: what makes two runs the same."""
    prepared_sha256: str | None = None
    """sha256 of prepared.json, in the train stages: shards that are not those are refused."""

    @property
    def run_uri(self) -> str:
        """The folder of this run in storage."""
        return paths.run_uri(self.spec.output.uri, self.job.run)

    def of_run(self, run: int) -> RunConfig:
        """Return the same configuration for another run."""
        return self.model_copy(update={"job": self.job.model_copy(update={"run": run})})
