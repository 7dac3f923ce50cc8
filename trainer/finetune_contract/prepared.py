"""What the prepare stage leaves behind: `prepared/prepared.json` and the shards that it lists.

Train reads only this, so that every attempt sees the same examples in the same order.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.deepspeed_spec import Offload
from finetune_contract.model import Model
from finetune_contract.spec import LossOn, Precision

SCHEMA_VERSION = 1


class Shard(Model):
    """One Parquet file with the columns `input_ids` and `labels` (lists of int32, -100 where no loss is taken);
    with preferences those are the better side, and `rejected_ids` and `rejected_labels` the worse.
    """

    split: Literal["train", "validation"]
    path: str
    """Relative to the run's folder."""
    rows: int
    tokens: int
    sha256: str
    bytes: int


class DatasetCounts(Model):
    """What the data is, as far as it can be told without a tokenizer."""

    format: DatasetFormat
    """Shape of the examples, given or detected; messages, where several kinds of conversations are mixed."""
    examples: int
    """Examples read."""
    train_examples: int
    """Examples trained on in an epoch, each as often as its source's weight says."""
    validation_examples: int
    """Examples held out."""
    duplicates: int
    """Examples equal to an earlier one."""
    near_duplicates: int = 0
    """Examples nearly equal to an earlier one, by MinHash."""
    leaked: int = 0
    """Examples not trained on, since their prompt stands in the given validation set."""
    damaged: int = 0
    """Examples with damaged letters: U+FFFD, mojibake, mostly control characters."""
    warnings: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=20)] = ()
    """What an expert would change, most important first."""


class DatasetSummary(DatasetCounts):
    """What the data is, in counts: it fills `status.dataset`."""

    train_tokens: int
    """Tokens of the training part, prompts included."""
    loss_tokens: int
    """Tokens of the training part that the loss is taken on."""
    longest: int
    """Tokens of the longest example, before cutting."""
    truncated: int
    """Examples that were cut to maxSequenceLength."""
    dropped: int
    """Examples left out, since nothing to train on remained."""


class Estimate(Model):
    """Memory of one GPU at the peak of a training step, in bytes: it fills `status.estimate`."""

    per_gpu_bytes: int
    """Sum of the breakdown."""
    gpu_bytes: int | None = None
    """Memory of one GPU, where it is known."""
    fits: bool | None = None
    """Whether it fits, where the GPU's memory is known."""
    breakdown: dict[str, int] = {}
    """Bytes by purpose at the peak: weights, adapter, gradients, optimizer, 16-bit copies, activations, logits, buffers, runtime."""


class Resolved(Model):
    """Everything that was defaulted, as concrete values: it fills `status.resolved`."""

    model_revision: str | None = None
    """Commit or content hash of the model's configuration and tokenizer files that was used."""
    dataset_revision: str | None = None
    """Commit of the data, where it lies on the hub."""
    dataset_sha256: str | None = None
    """sha256 over the data files."""
    learning_rate: float
    """Peak learning rate."""
    total_steps: int
    """Optimizer steps of the run."""
    batch_size: int
    """Examples an optimizer step."""
    micro_batch_size: int
    """Examples a forward pass; train may lower it to what the GPU holds, at the same batchSize."""
    max_sequence_length: int
    """Longest example in tokens."""
    packing: bool
    """Whether sequences hold several examples."""
    precision: Precision
    """Number format of the computation."""
    gradient_checkpointing: bool
    """Whether activations are recomputed."""
    zero_stage: int = 0
    """What the GPUs share out: DeepSpeed's ZeRO stage."""
    offload: Offload = Offload.NONE
    """What lies in the node's memory."""
    loss: LossOn
    """Tokens that are trained on."""
    eval_every_steps: int
    """Steps between two measurements of the held-out loss."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints; absent where checkpoint.everyMinutes alone decides."""
    sample_every_steps: int | None = None
    """Steps between two rounds of answers to the sample prompts."""
    lora_alpha: float | None = None
    """Scale of the adapter's update."""
    beta: float | None = None
    """Strength of a preference objective."""
    because: dict[str, str] = {}
    """Field by field, why this was chosen."""


class Prepared(Model):
    """The whole of prepared.json."""

    schema_version: int = SCHEMA_VERSION
    job_uid: str
    config_hash: str
    dataset: DatasetSummary
    estimate: Estimate
    resolved: Resolved
    pad_token_id: int
    shards: tuple[Shard, ...]
    held_out: str
    """JSON Lines beside the shards: held-out examples as {"messages" or "prompt", "answer"}, for generation."""
    first_example: str
    """First formatted example, its trained tokens marked, for log and report."""
    token_histogram: dict[str, int] = {}
    """Examples by length bucket, "0-127" and so on."""
    label_histogram: dict[str, int] = {}
    """Examples by answer, most frequent first, where there are few and short ones."""
