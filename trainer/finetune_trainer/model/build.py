"""The model as each method trains it.

LoRA: the base in the precision of the computation, frozen, adapters in float32. QLoRA: the same on a base in NF4.
Full: all weights in float32, computed with in bfloat16 under autocast, since updates of 1e-5 vanish in bfloat16; with
ZeRO the weights to compute with are there beside those in float32, of which each process holds a share.
Only safetensors are read, never pickles, and no code that a model folder may bring along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from finetune_contract.deepspeed_spec import PARTITIONED_WEIGHTS
from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Resolved
from finetune_contract.run_config import RunConfig
from finetune_contract.spec import Lora, Method, Precision, Quantization
from finetune_trainer.errors import TrainerError
from finetune_trainer.failures import explain
from finetune_trainer.model.adapters import attach, has_adapters, save_adapters
from finetune_trainer.model.vocabulary import grow_embeddings, ids_of


def device() -> torch.device:
    """Return the GPU of this process, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_for_training(config: RunConfig, resolved: Resolved, folder: Path, tokenizer: Any) -> Any:
    """Load the base model as the method needs it, adapters attached. Raises MODEL_INVALID, CONFIG_INVALID."""
    spec = config.spec
    quantization = (spec.quantization or Quantization()) if spec.method is Method.QLORA else None
    # With ZeRO the optimizer holds the float32 weights, and the model those that it computes with.
    whole = spec.method is Method.FULL and not resolved.zero_stage
    dtype = torch.float32 if whole else compute_dtype(resolved.precision)
    base = load_base(
        folder, dtype=dtype, quantization=quantization, partitioned=resolved.zero_stage == PARTITIONED_WEIGHTS
    )
    base.config.use_cache = False
    new_tokens = ids_of(tokenizer, spec.model.new_tokens)
    grow_embeddings(base, new_tokens)
    if spec.method is Method.FULL:
        return base
    lora = spec.lora or Lora()
    alpha = resolved.lora_alpha or lora.rank
    tuned = attach(
        base,
        lora,
        alpha=alpha,
        seed=spec.hyperparameters.seed,
        quantised=quantization is not None,
        new_tokens=new_tokens,
    )
    if resolved.zero_stage:
        hold_trained(tuned, dtype=dtype)
    return tuned


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    on: torch.device | None = None,
    partitioned: bool = False,
) -> Any:
    """Load the weights of a model folder onto this process's device, or onto `on`; if `partitioned`, a share of them
    (inside `zero.loading`), or for quantised ones all of them into the node's memory, to be shared out from there.
    Raises MODEL_INVALID.
    """
    from transformers import AutoModelForCausalLM

    place = {"": torch.device("cpu") if quantization and partitioned else on or device()}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=_nf4(quantization, dtype, partitioned=partitioned) if quantization else None,
            device_map=None if partitioned and not quantization else place,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _invalid("weights", error) from error
    except Exception as error:
        # safetensors has an error type of its own for damaged files.
        if type(error).__name__ == "SafetensorError":
            raise _invalid("weights", error) from error
        raise
    if quantization:
        _keep_cpu_gradients_right(model)
    return model


def compute_dtype(precision: Precision) -> torch.dtype:
    """Return torch's name of a precision."""
    return torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32


def computing(precision: Precision) -> AbstractContextManager[Any]:
    """Compute inside as training does: under autocast where the precision is bfloat16."""
    if precision is Precision.FLOAT32:
        return nullcontext()
    return torch.autocast(device().type, dtype=torch.bfloat16)


@contextmanager
def measuring(model: Any, precision: Precision) -> Iterator[None]:
    """Compute inside without gradients and dropout, in the precision of the training."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), computing(precision):
            yield
    finally:
        model.train(was_training)


def hold_trained(model: Any, *, dtype: torch.dtype = torch.float32) -> None:
    """Hold what is trained in a number format: in bfloat16 the last, small updates of a falling learning rate are lost.

    With ZeRO the optimizer has the float32 weights, and the model's are of one format.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def set_recomputation(model: Any, *, on: bool) -> None:
    """Have activations computed again in the backward pass, or kept."""
    # The names of transformers 5.17, too, which newer ones call activation_checkpointing_*.
    if on:
        model.gradient_checkpointing_enable()
    elif any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        model.gradient_checkpointing_disable()


def save_weights(model: Any, folder: Path) -> None:
    """Write what is trained to a folder, as a resume needs it: the adapters, or all weights."""
    if has_adapters(model):
        save_adapters(model, folder)
    else:
        model.save_pretrained(folder)


def _nf4(quantization: Quantization, dtype: torch.dtype, *, partitioned: bool) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
        # Weights that are shared out must be of one number format: four quantised ones look like one of 16 bits.
        bnb_4bit_quant_storage=dtype if partitioned else torch.uint8,
    )


def _keep_cpu_gradients_right(model: Any) -> None:
    # On CPUs with avx512_bf16, bitsandbytes repacks the weights at the first forward without gradients, and later
    # training goes through a kernel that has none: gradients become wrong without an error.
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _invalid(what: str, error: Exception) -> TrainerError:
    known = explain(error)
    if known.code is not ExitCode.INTERNAL_ERROR:
        return known
    return TrainerError(ExitCode.MODEL_INVALID, f"The model's {what} cannot be loaded: {str(error)[:500]}")
