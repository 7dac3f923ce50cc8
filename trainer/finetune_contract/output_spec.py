"""What is written of the tuned model, and where: `spec.output`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_contract.fields import SecretRef, Uri
from finetune_contract.model import Model


class MergedBase(StrEnum):
    """Which base weights the adapter of QLoRA is merged into."""

    DEQUANTIZED = "dequantized"
    ORIGINAL = "original"


class Merged(Model):
    """The weights with the adapter merged in, ready to serve."""

    enabled: bool = True
    """Write them."""
    base: MergedBase | None = None
    """Only with QLoRA: the base that the adapter is merged into. dequantized, when absent: the 4-bit base that it was trained on and evaluated with, back in 16 bit. original: the model's own 16-bit weights, another model than the one that was evaluated."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format of the written weights; the merge itself is computed in float32."""
    max_shard_size: Annotated[str, Field(max_length=16, pattern=r"^[1-9][0-9]{0,5}(MB|GB|MiB|GiB)$")] = "5GB"
    """Largest weight file, as transformers writes it: 500MB, 5GB. Larger models are split and get an index."""


class GgufType(StrEnum):
    """Number format of the matrices in a GGUF file."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


class Gguf(Model):
    """The merged weights for llama.cpp and Ollama, with a Modelfile."""

    types: Annotated[tuple[GgufType, ...], Field(min_length=1, max_length=4)] = (GgufType.Q8_0,)
    """One file each: f32, f16, bf16, q8_0 (half the size, almost no loss), q5_1, q5_0, q4_1, q4_0 (a quarter). The Modelfile takes the first."""


class Hub(Model):
    """A repository on the Hugging Face hub."""

    repo: Annotated[str, Field(max_length=193, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Repository, as organisation/name; created if it is not there."""
    private: bool = True
    """Whether a repository that is created is private. One that is there stays as it is."""
    secret_ref: SecretRef | None = None
    """Secret with HF_TOKEN, a token that may write; that of output.secretRef when absent."""


class IfExists(StrEnum):
    """What a job does that finds results of an earlier, identical one."""

    FAIL = "Fail"
    ADOPT = "Adopt"


class Output(Model):
    """Where the results go."""

    uri: Uri
    """Where the results go: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/path. A run's results lie under run-<n>/ below it, the manifest written last."""
    if_exists: IfExists = IfExists.FAIL
    """What follows if output.uri holds the results of another job with the same configuration, as of this one before it was deleted: the job fails as OutputExists (Fail), or takes them for its own once every file is found to be as its manifest lists it (Adopt), without a GPU. Data that changed meanwhile under the same URI are not looked at."""
    merged: Merged = Merged()
    """The merged weights."""
    gguf: Gguf | None = None
    """The merged weights as GGUF, for llama.cpp and Ollama; none when absent. A model that cannot be written as GGUF is a warning in status.outputs, the other outputs are kept."""
    hub: Hub | None = None
    """Where the results are pushed to as well, once they are complete in output.uri. A failure is a warning in status.outputs."""
    secret_ref: SecretRef | None = None
    """Credentials for output.uri."""
