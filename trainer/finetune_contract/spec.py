"""The parts of a FineTuneJob's spec that the trainer acts on, as the user writes them.

Absent means "chosen for the user": `resolve.py` chooses and says why. Attribute docstrings are what
`kubectl explain` shows. Rules that cross fields stand in `finetune_operator.api.rules`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_contract.dataset_spec import DatasetSource
from finetune_contract.deepspeed_spec import DeepSpeed
from finetune_contract.fields import Fraction, Positive, Revision, SecretRef, Uri
from finetune_contract.measures import (
    EarlyStopping,
    Forgetting,
    Gate,
    JsonSchema,
    Judge,
    MetricName,
    RegexMetric,
    Samples,
)
from finetune_contract.model import Model
from finetune_contract.output_spec import Output
from finetune_contract.tracking_spec import Tracking


class Method(StrEnum):
    """How the model is tuned."""

    LORA = "LoRA"
    QLORA = "QLoRA"
    FULL = "Full"


class Objective(StrEnum):
    """What the model is tuned towards."""

    SFT = "SFT"
    DPO = "DPO"
    ORPO = "ORPO"
    KTO = "KTO"


class LossOn(StrEnum):
    """Which tokens of an example are trained on."""

    ASSISTANT = "assistant"
    COMPLETION = "completion"
    ALL = "all"


class Precision(StrEnum):
    """Number format of the computation."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Optimizer(StrEnum):
    """What turns gradients into updates; the 8-bit and paged ones are bitsandbytes'."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw8bit"
    PAGED_ADAMW_8BIT = "pagedAdamw8bit"
    PAGED_ADAMW_32BIT = "pagedAdamw32bit"
    LION_8BIT = "lion8bit"
    ADAFACTOR = "adafactor"


class ModelSource(Model):
    """The base model."""

    uri: Uri
    """Where the model lies: hf://organisation/name, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/path. A folder as transformers saves it: configuration, tokenizer, safetensors."""
    revision: Revision = None
    """Branch, tag or commit of a model on the hub; main when absent. status.resolved has the commit that was used."""
    new_tokens: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=256)] = ()
    """Tokens added to the vocabulary, each then one token of the data: their embeddings start as the mean of all, are trained with every method, and travel with adapter, merged weights and tokenizer."""
    secret_ref: SecretRef | None = None
    """Credentials for model.uri."""


Modules = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=64)]


class Lora(Model):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter matrices: their capacity. Raise it if the model underfits."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scale of the update, which is alpha / rank; equal to the rank when absent."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: Annotated[Modules, Field(min_length=1)] = ("all-linear",)
    """Names of the linear layers that get an adapter, or the ends of their names; all-linear means every one but the output head."""
    exclude_modules: Modules = ()
    """Names, or ends of names, of layers that get no adapter though targetModules has them; mlp leaves out all that is in it."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank), so that high ranks learn as fast as low ones (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train the weights' magnitudes apart from their directions (Liu et al. 2024, arXiv:2402.09353): often better at low ranks, and slower."""
    initialization: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """How the adapters start. default and gaussian: as no change of the model. pissa (Meng et al. 2024, arXiv:2404.02948) and olora (Büyükakyüz 2024, arXiv:2406.01775): as the weights' principal part, which is then trained; the exported adapter has twice the rank and belongs to the unchanged base model. Not with QLoRA, nor with dora."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1000)] | None = None
    """Learning rate of the adapters' second matrices as a multiple of learningRate (LoRA+, Hayou et al. 2024, arXiv:2402.12354); 1 when absent, and 16 is its authors' choice."""
    modules_to_save: Modules = ()
    """Names, or ends of names, of modules that are trained whole and saved with the adapter, such as embed_tokens and lm_head."""


FP8 = "fp8"


class Quantization(Model):
    """How the frozen base model is held: with QLoRA in 4 bits, with LoRA in 8 if it is asked for."""

    type: Literal["nf4", "fp8"] = "nf4"
    """Number format of the frozen weights. nf4, when absent, is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314). fp8 is for LoRA: weights of the linear layers and what they are multiplied with in e4m3, scales by row (Micikevicius et al. 2022, arXiv:2209.05433), adapters and all else as without it; a step of an 8B model takes 0.69 of the time on an H200, and the weights half of the memory. It needs GPUs that multiply FP8 (L4, L40S, H100 and newer), and a run whose held-out loss before training differs by more than 1 % from that in bfloat16 is refused."""
    double_quant: bool = True
    """With nf4, quantise the quantisation constants too: 0.4 bits a parameter less."""


class Hyperparameters(Model):
    """What steers the optimisation. Whatever is absent is chosen from method, data and GPU, and shown in status.resolved."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the training part; 3 when maxSteps is absent too, 1 with DPO and KTO. Not together with maxSteps."""
    max_steps: Positive | None = None
    """Optimizer steps. Not together with epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; when absent 2e-4 for LoRA and QLoRA and 1e-5 for Full, with DPO 5e-6 and 5e-7, with ORPO 8e-5 and 8e-6, with KTO 1e-5 and 1e-6; a fifth of that with lion8bit."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 16
    """Examples an optimizer step, over all GPUs."""
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Examples a forward pass on one GPU; chosen by the memory when absent. It must divide batchSize and never changes the result of a step."""
    max_sequence_length: Annotated[int, Field(ge=8, le=1048576)] | None = None
    """Longest example in tokens; longer ones are cut at the end. Chosen from the data's lengths and the model's limit when absent."""
    packing: bool | None = None
    """Put several examples into one sequence, without attention between them."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps over which the learning rate rises."""
    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    optimizer: Optimizer = Optimizer.ADAMW
    """adamw holds 8 bytes a trained parameter, adamw8bit 2, lion8bit 1 (Chen et al. 2023, arXiv:2302.06675), adafactor next to none (Shazeer and Stern 2018, arXiv:1804.04235). The paged ones move to the node's memory when the GPU's runs short, which takes time."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The optimizer's weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 42
    """Seed of everything random."""
    precision: Precision | None = None
    """Number format of the computation; bfloat16 when absent, on a CPU without units for it float32."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory; only when the estimate asks for it, if absent."""
    loss: LossOn | None = None
    """Tokens that are trained on: assistant (every assistant turn), completion (the last turn only), all. assistant when absent; all for text; completion with preferences, where nothing else works."""
    beta: Annotated[float, Field(gt=0, le=100)] | None = None
    """With DPO and KTO how strongly the model is held to the base model, with ORPO the weight of the preference beside the answer's own loss; 0.1 when absent."""


class Evaluation(Model):
    """How the tuned model is measured on the held-out part, beside the base model."""

    every_steps: Positive | None = None
    """Optimizer steps between two measurements of the held-out loss; about ten a run when absent."""
    early_stopping: EarlyStopping | None = None
    """End the run when the held-out loss no longer falls; without it all steps are trained."""
    metrics: Annotated[tuple[MetricName, ...], Field(max_length=5)] = ()
    """Scores of generated answers against the held-out ones, each a mean between 0 and 1. exactMatch: equal, blanks trimmed. regex: evaluation.regex is found. jsonValid: the whole answer is JSON. jsonSchema: it is JSON that fits evaluation.jsonSchema. rouge: ROUGE-L, the F1 of the longest common subsequence of words."""
    regex: RegexMetric | None = None
    """What the metric regex looks for."""
    json_schema: JsonSchema | None = None
    """JSON Schema that answers must fit, for the metric jsonSchema. Without $schema it is read as draft 2020-12; $ref stays inside it."""
    max_examples: Annotated[int, Field(ge=1, le=10000)] = 32
    """Held-out examples that are answered for the metrics; loss and perplexity use all of them."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Longest generated answer in tokens."""
    samples: Samples = Samples()
    """Prompts whose answers are kept."""
    forgetting: Forgetting = Forgetting()
    """What tuning costs in general: perplexity on text beside the task, before and after."""
    judge: Judge | None = None
    """A language model that compares the answers of base and tuned model."""
    compare_with_base: bool = True
    """Measure the base model as well. false spares its time; nothing then says what tuning has changed."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=8)] = ()
    """Bounds for the tuned model. Below one the job ends as Failed with reason GateFailed, and is not tried again; the outputs are written all the same, marked in the manifest."""


class Checkpoint(Model):
    """How often progress is made safe in object storage."""

    every_steps: Positive | None = None
    """Optimizer steps between two checkpoints; about ten a run when everyMinutes is absent, too."""
    every_minutes: Annotated[int, Field(ge=1, le=10080)] | None = None
    """Minutes of training between two checkpoints; with everySteps, whichever comes first."""
    resume_from: Uri = "Latest"
    """Where the run starts: Latest (its own newest checkpoint, else the beginning), None (every attempt begins anew), or the folder of another run or checkpoint, as s3://models/support-bot/run-1, with the same model, method and data; it is read with the credentials of output.uri."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Newest checkpoints that are kept."""


class TuningSpec(Model):
    """What is tuned, on what, how and where to: the part of a spec that the trainer sees."""

    method: Method
    """How the model is tuned: LoRA (adapters), QLoRA (adapters on a 4-bit base) or Full (all weights)."""
    objective: Objective = Objective.SFT
    """What it is tuned towards: SFT (the answers of the data); with data in the format preference DPO (better answers before worse ones, measured against the base model: Rafailov et al. 2023, arXiv:2305.18290), ORPO (the better answers, and away from the worse: Hong et al. 2024, arXiv:2403.07691) or KTO (each answer by itself, good or bad, measured against the base model: Ethayarajh et al. 2024, arXiv:2402.01306)."""
    model: ModelSource
    """The base model."""
    dataset: DatasetSource
    """The examples."""
    output: Output
    """Where the results go."""
    lora: Lora | None = None
    """Adapters; only with LoRA and QLoRA."""
    quantization: Quantization | None = None
    """How the frozen base model is held: type nf4 with QLoRA, type fp8 with LoRA."""
    deepspeed: DeepSpeed | None = None
    """How GPUs share what one cannot hold. Chosen by the memory when absent."""
    hyperparameters: Hyperparameters = Hyperparameters()
    """What steers the optimisation."""
    evaluation: Evaluation = Evaluation()
    """How the result is measured."""
    checkpoint: Checkpoint = Checkpoint()
    """How often progress is made safe."""
    tracking: Tracking | None = None
    """Where the run's figures go beside status and report."""

    @property
    def in_fp8(self) -> bool:
        """Whether the frozen base model is held in FP8."""
        return self.method is Method.LORA and self.quantization is not None and self.quantization.type == FP8
