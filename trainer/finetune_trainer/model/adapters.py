"""Low-rank adapters on a base model: which layers get one, how they start, and what is saved of them.

Names are checked before anything is attached, on a model without weights too (prepare does so): PEFT takes a name that
matches nothing, or a rank above a layer's size, in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import Lora
from finetune_trainer.errors import TrainerError
from finetune_trainer.model import principal
from finetune_trainer.model.vocabulary import embedding_names, has_tied_embeddings

ALL_LINEAR = "all-linear"
_INITIALIZATIONS: dict[str, bool | str] = {
    "default": True,
    "gaussian": "gaussian",
    # A randomised singular value decomposition: seconds where the full one takes minutes, and as good (section 3.3).
    "pissa": "pissa_niter_16",
    "olora": "olora",
}
_SHOWN = 8


def attach(
    base: Any, lora: Lora, *, alpha: float, seed: int, quantised: bool = False, new_tokens: Iterable[int] = ()
) -> Any:
    """Return the base model with adapters; `new_tokens` are ids whose embeddings are trained. Raises CONFIG_INVALID."""
    from peft import get_peft_model
    from transformers import set_seed

    targets = targets_of(base, lora, quantised=quantised)
    settings = _settings(base, lora, targets, alpha=alpha, new_tokens=list(new_tokens))
    set_seed(seed)  # adapters start at random values
    try:
        model = get_peft_model(base, settings)
    except ValueError as error:
        _refuse("lora", str(error))
    if any(_was_transposed(layer) for layer in targets.values()):
        model.peft_config["default"].fan_in_fan_out = True  # as it has to be on the base model that is not quantised
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # TRL's head asks PEFT's layer for single tokens, which has none
    if lora.initialization in principal.CHANGES_THE_BASE:
        principal.remember_start(model)
    return model


def check_adapters(folder: Path, lora: Lora, *, quantised: bool) -> None:
    """Check names and rank against a model folder's configuration, without weights. Raises CONFIG_INVALID."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(settings)
    except (OSError, ValueError, KeyError) as error:
        raise TrainerError(ExitCode.MODEL_INVALID, f"The model cannot be built: {str(error)[:500]}") from error
    targets_of(model, lora, quantised=quantised)


def has_adapters(model: Any) -> bool:
    """Whether a model is trained by adapters, so that its weights to keep are the adapters'."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def save_adapters(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write the adapters, and what else is trained beside them, as a resume needs them.

    `weights` are those of the trained parameters, by name, where the model itself does not have them whole.
    """
    # What is trained of the embeddings is in the adapter; PEFT would ask the hub about the rest.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)
    principal.save_start(model, folder)


def load_adapters(model: Any, folder: Path) -> None:
    """Put what `save_adapters` wrote back into the model that it was written of."""
    principal.adopt_start(model, folder)
    model.load_adapter(str(folder), "default", is_trainable=True)


def targets_of(model: Any, lora: Lora, *, quantised: bool) -> dict[str, Any]:
    """Return the layers that get an adapter, by name. Raises CONFIG_INVALID, naming the field."""
    layers = _linear_layers(model)
    found = _chosen(model, layers, lora)
    excluded = _matching(dict(model.named_modules()), lora.exclude_modules, field="lora.excludeModules")
    saved = _saved_modules(model, lora, quantised=quantised)
    left_out = (*excluded, *saved)
    targets = {
        name: layer
        for name, layer in found.items()
        if not any(name == one or name.startswith(f"{one}.") for one in left_out)
    }
    if not targets:
        _refuse("lora.excludeModules", "no layer is left for an adapter: exclude less")
    _check_rank(targets, lora)
    return targets


def _chosen(model: Any, layers: dict[str, Any], lora: Lora) -> dict[str, Any]:
    head = embedding_names(model)[1]
    found: dict[str, Any] = {}
    for wanted in lora.target_modules:
        if wanted == ALL_LINEAR:
            # A router's gate of one output has nothing to be of low rank.
            found |= {name: layer for name, layer in layers.items() if name != head and min(_sizes(layer)) > 1}
            continue
        matched = _of_name(layers, wanted)
        if head in matched:
            _refuse("lora.targetModules", f"{wanted} is the output head: name it in lora.modulesToSave instead")
        if not matched:
            _refuse("lora.targetModules", _why_nothing(model, layers, wanted))
        found |= matched
    return found


def _why_nothing(model: Any, layers: dict[str, Any], wanted: str) -> str:
    if _of_name(dict(model.named_modules()), wanted):
        return f"{wanted} is no linear layer: name it in lora.modulesToSave, or remove it"
    if _of_name(dict(model.named_parameters()), wanted):
        return f"{wanted} is a tensor of all experts at once, which adapters cannot be put on: remove it"
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    return f"the model has no layer {wanted}; its linear layers are {', '.join(known[:_SHOWN])}"


def _saved_modules(model: Any, lora: Lora, *, quantised: bool) -> dict[str, Any]:
    """Return the modules to train whole. They must exist, and be in numbers that can be trained."""
    found = _matching(dict(model.named_modules()), lora.modules_to_save, field="lora.modulesToSave")
    head = embedding_names(model)[1]
    for name, module in found.items():
        if not any(True for _ in module.parameters()):
            _refuse("lora.modulesToSave", f"{name} has no weights: remove it")
        if quantised and name != head and _linear_layers(module):
            _refuse("lora.modulesToSave", f"{name} is quantised by QLoRA and cannot be trained whole: use method LoRA")
    return found


def _check_rank(targets: dict[str, Any], lora: Lora) -> None:
    for name, layer in targets.items():
        inputs, outputs = _sizes(layer)
        if lora.rank > min(inputs, outputs):
            _refuse(
                "lora.rank",
                f"{lora.rank} is above the size of {name} ({inputs} inputs, {outputs} outputs): "
                "lower it, or exclude that layer",
            )


def _settings(base: Any, lora: Lora, targets: dict[str, Any], *, alpha: float, new_tokens: list[int]) -> Any:
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    saved = list(lora.modules_to_save)
    embedding, head = embedding_names(base)
    whole = {name for name in (embedding, head) if any(_of_name({name: None}, one) for one in lora.modules_to_save)}
    tied = has_tied_embeddings(base)
    if whole and tied:
        # PEFT ties the trained copies by the head's name alone.
        saved = [name for name in saved if not _of_name(dict.fromkeys((embedding, head)), name)] + [head]
    alone = [embedding] if tied else [embedding, head]
    indices = {name: new_tokens for name in alone if name not in whole and not (whole and tied)}
    if new_tokens and head in indices and getattr(base.get_output_embeddings(), "bias", None) is not None:
        # PEFT's layer for single tokens leaves a bias out.
        _refuse("model.newTokens", f"the model's output head has a bias: name {head} in lora.modulesToSave")
    return LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=_short(base, targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=_INITIALIZATIONS[lora.initialization],
        modules_to_save=saved or None,
        ensure_weight_tying=bool(whole) and tied,
        trainable_token_indices=indices if new_tokens and indices else None,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in targets.values()),
        task_type="CAUSAL_LM",
    )


def _short(model: Any, targets: dict[str, Any]) -> list[str]:
    """Return the last parts of the names where those mean the same layers: what other tools expect to find."""
    ends = sorted({name.rsplit(".", 1)[-1] for name in targets})
    meant = {name for end in ends for name in _of_name(dict(model.named_modules()), end)}
    return ends if meant == targets.keys() else sorted(targets)


def _linear_layers(model: Any) -> dict[str, Any]:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear | Conv1D)}


def _sizes(layer: Any) -> tuple[int, int]:
    """Return inputs and outputs; GPT-2's Conv1D has its weight the other way round."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    return int(layer.nx), int(layer.nf)


def _was_transposed(layer: Any) -> bool:
    """Whether bitsandbytes' layer was a Conv1D."""
    return getattr(getattr(layer, "source_cls", None), "__name__", "") == "Conv1D"


def _matching(modules: dict[str, Any], wanted: Iterable[str], *, field: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in wanted:
        matched = _of_name(modules, name)
        if not matched:
            _refuse(field, f"the model has no module {name}: correct or remove it")
        found |= matched
    return found


def _of_name(modules: dict[str, Any], wanted: str) -> dict[str, Any]:
    """Return the modules of that name, or whose name ends with it, as PEFT matches them."""
    return {name: module for name, module in modules.items() if name == wanted or name.endswith(f".{wanted}")}


def _refuse(field: str, what: str) -> NoReturn:
    raise TrainerError(ExitCode.CONFIG_INVALID, f"{field}: {what}.")
