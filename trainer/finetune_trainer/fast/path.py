"""The fast path: how training passes are computed on a GPU, whatever decoder transformers and PEFT have built.

With adapters, or of a model that is trained whole: then its head gets a gradient, too.

It is there while a pass runs, and nowhere else: the model's objects take on other classes, the decoder layers are
called through `torch.compile`, attention goes to the kernels for documents. Before and after, everything is as PEFT
left it, so that measuring, generating, saving and loading know nothing of it.

Examples lie flat in micro-batches (`micro_batches.py`). The first micro-batch's length is compiled for as it is; where
lengths differ, the second one makes the compiler take the number of tokens as a variable, and that was the last time.

What has no fast part keeps its own: a layer by its class, and the whole model where attention, head or trained weights
are not what is computed here (`why_not`). A pass of both ways is compared before the fast one is used (`check.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from finetune_trainer.fast.copies import Copies
from finetune_trainer.fast.groups import group_layers
from finetune_trainer.fast.kernels import attention, attention_choice, attention_later
from finetune_trainer.fast.kernels.layout import Layout, laid_out
from finetune_trainer.fast.kernels.loss import counted_loss, head_of
from finetune_trainer.fast.layers import dtype_of, fast_gated_mlp, fast_linear, frozen, is_lora, taken_on
from finetune_trainer.fast.layers_fp8 import is_held_in_fp8
from finetune_trainer.fast.micro_batches import MicroBatch
from finetune_trainer.model.adapters import has_adapters

GRAPHS = 64
"""Graphs that one piece of code may have: kinds of decoder layers, with a fixed and a variable number of tokens."""
COMPILERS = 4
"""Processes that compile kernels: each has torch in its memory, which counts against the pod's limit."""
_KINDS_OF_ATTENTION = frozenset({"full_attention", "sliding_attention"})


class FastPath:
    """Computes the training passes of one PEFT model."""

    def __init__(self, model: Any, *, compiled: bool) -> None:
        """Find what can be computed faster. Raises ValueError with the reason where nothing can (`why_not`)."""
        if reason := why_not(model):
            raise ValueError(reason)
        attention.register()
        self.recompute = False
        """Whether each layer's activations are computed again in the backward pass."""
        self._later: attention_later.Later | None = None
        self._model, self._causal = model, causal_of(model)
        self._backbone = self._causal.base_model
        self._layers = decoder_layers(self._backbone)
        self._classes, self.slow_linears = _linear_classes(self._backbone)
        gated = _gated_classes(self._backbone)
        self.gated_mlps = len(gated)
        self._classes |= gated
        grouped = _grouped_classes(self._backbone, self._classes)
        self._classes |= grouped
        self._copies = Copies(module for module in self._classes if is_lora(module))
        head = self._causal.get_output_embeddings()
        text = self._causal.config.get_text_config()
        # A trained weight is held as it is: sharing out puts it elsewhere in memory.
        weight = head.weight if head.weight.requires_grad else head.weight.detach()
        self._head = head_of(text, weight, getattr(head, "bias", None))
        self.in_fp8 = is_held_in_fp8(model)
        """Whether frozen weights are held in FP8."""
        self.compiled = compiled
        """Whether the decoder layers are; where they cannot be, whoever finds out says no."""
        self._compiled = _compiled(self._layers) if compiled else []

    @property
    def summary(self) -> str:
        """What is computed how, for log and report."""
        linears = sum(is_lora(module) for module in self._classes)
        fast = f"{len(self._layers)} decoder layers, {linears} layers with LoRA, {self.gated_mlps} fused gated MLPs"
        slow = f"; {self.slow_linears} layers with LoRA as PEFT computes them" if self.slow_linears else ""
        fast += ", frozen weights in FP8" if self.in_fp8 else ""
        return fast + slow + ("" if self.compiled or not self._compiled else "; decoder layers not compiled")

    @property
    def sample(self) -> list[torch.Tensor]:
        """What is trained of the first layer, whose gradients come through all others."""
        return [one for one in self._layers[0].parameters() if one.requires_grad]

    def prepare_attention(self, *, tokens: int, length: int) -> None:
        """Settle the kernels for documents of up to a length on this card."""
        text = self._causal.config.get_text_config()
        heads = text.num_attention_heads
        shape = attention_choice.Shape(
            tokens=tokens,
            length=length,
            heads=heads,
            key_heads=getattr(text, "num_key_value_heads", None) or heads,
            width=getattr(text, "head_dim", None) or text.hidden_size // heads,
            dtype=self._head.weight.dtype,
            window=getattr(text, "sliding_window", None) or 0,
        )
        attention_choice.measure(shape)
        self._later = attention_later.later(shape)

    def step_begins(self, *, left: int) -> None:
        """Take what has been loaded meanwhile, with so many steps left."""
        if self._later is not None:
            self._later.step_begins(left=left)

    @contextmanager
    def running(self, *, compiled: bool = True) -> Iterator[None]:
        """Have the model compute micro-batches inside: `model(micro_batch=...)` returns the sum of their losses."""
        calls = self._compiled if compiled and self.compiled else [layer._call_impl for layer in self._layers]
        with ExitStack() as stack:
            stack.enter_context(self._copies.lent())
            stack.enter_context(taken_on(self._classes))
            stack.enter_context(_set(self._causal, "forward", self._forward))
            stack.enter_context(_attention_of(self._causal.config.get_text_config(), attention.NAME))
            for layer, call in zip(self._layers, calls, strict=True):
                # transformers' own flag would have the compiler see the recomputation.
                stack.enter_context(_set(layer, "gradient_checkpointing", False))
                stack.enter_context(_set(layer, "_compiled_call_impl", self._recomputed(call)))
            yield

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Compute passes without a compiler inside, with as little memory as can be."""
        before = self.compiled, self.recompute
        self.compiled, self.recompute = False, True
        try:
            yield
        finally:
            self.compiled, self.recompute = before

    def _recomputed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return partial(checkpoint, call, use_reentrant=False) if self.recompute else call

    def _forward(self, *, micro_batch: MicroBatch, **_: Any) -> torch.Tensor:
        """Stand in for the causal model's forward."""
        self._copies.collect()  # what the pass before has left
        out = self._backbone(input_ids=micro_batch.input_ids, position_ids=micro_batch.position_ids, use_cache=False)
        hidden = out.last_hidden_state[0].index_select(0, micro_batch.counted)
        return counted_loss(hidden, micro_batch.targets, self._head)


@contextmanager
def flat(micro_batch: MicroBatch) -> Iterator[None]:
    """Pass a micro-batch forward and backward inside."""
    with laid_out(Layout(micro_batch.starts, micro_batch.lengths)):
        yield


def causal_of(model: Any) -> Any:
    """Return the model that transformers has made, which PEFT may have wrapped."""
    return model.get_base_model() if has_adapters(model) else model


def why_not(model: Any) -> str | None:
    """Return why the model as a whole has no fast path; None if it has one."""
    causal, whole = causal_of(model), not has_adapters(model)
    text, head = causal.config.get_text_config(), causal.get_output_embeddings()
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    others = [] if whole else [name for name in trained if not _is_of_lora(name)]
    kinds = set(getattr(text, "layer_types", None) or ()) - _KINDS_OF_ATTENTION
    reasons = {
        f"weights beside the adapters are trained: {next(iter(others), '')}": others,
        f"its layers are of the kind {', '.join(sorted(kinds))}": kinds,
        "its attention cannot be exchanged": not getattr(causal, "_supports_attention_backend", False),
        "its attention caps scores": getattr(text, "attn_logit_softcapping", None),
        "its output head is not a plain linear layer": not _is_plain_head(head),
        "its output head's bias is trained": whole and getattr(head, "bias", None) is not None,
        "its decoder layers are not in one list": decoder_layers(causal.base_model) is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _is_plain_head(head: Any) -> bool:
    return isinstance(head, torch.nn.Linear) and head.weight.is_floating_point()


def decoder_layers(backbone: Any) -> Any:
    """Return the list of decoder layers; None if there is none that its configuration speaks of."""
    number = backbone.config.get_text_config().num_hidden_layers
    lists = [one for one in backbone.children() if isinstance(one, torch.nn.ModuleList) and len(one) == number]
    return lists[0] if len(lists) == 1 else None


def _is_of_lora(name: str) -> bool:
    return any(part in name for part in (".lora_A.", ".lora_B.", ".lora_magnitude_vector."))


def _linear_classes(backbone: Any) -> tuple[dict[Any, type], int]:
    """Return the fast classes of linear layers, and how many with LoRA have none."""
    modules = list(backbone.modules())
    within = {id(module.get_base_layer()) for module in modules if is_lora(module)}
    found = {module: fast for module in modules if id(module) not in within and (fast := fast_linear(module))}
    return found, sum(is_lora(module) and module not in found for module in modules)


def _gated_classes(backbone: Any) -> dict[Any, type]:
    return {module: fast for module in backbone.modules() if (fast := fast_gated_mlp(module))}


def _grouped_classes(backbone: Any, fast: dict[Any, type]) -> dict[Any, type]:
    found: dict[Any, type] = {}
    for module in backbone.modules():
        found |= group_layers(module, fast, weights=frozen, dtype=dtype_of)
    return found


def _compiled(layers: Any) -> list[Callable[..., Any]]:
    from torch._inductor import config as inductor

    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    dynamo.optimize_ddp = False  # a layer is small enough to wait for, and would be cut into more graphs
    inductor.compile_threads = min(inductor.compile_threads or COMPILERS, COMPILERS)
    return [torch.compile(layer._call_impl, fullgraph=True) for layer in layers]


@contextmanager
def _attention_of(config: Any, name: str) -> Iterator[None]:
    before = config._attn_implementation_internal
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before


_ABSENT = object()


@contextmanager
def _set(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Have an attribute of an object be another inside."""
    before = thing.__dict__.get(name, _ABSENT)
    thing.__dict__[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            del thing.__dict__[name]
        else:
            thing.__dict__[name] = before
