"""The outputs of one run are one model: the adapter on its base, the merged weights, and the GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.quality.figure import Figure, at_most
from benchmarks.quality.job import Finished
from benchmarks.quality.orders import example
from dev.models import smollm2
from finetune_contract import paths

_TEXTS = 16


def figures(run: Finished) -> list[Figure]:
    """Return how far apart the outputs are, beside how far tuning has moved them from the base."""
    merged = run.folder / paths.MERGED
    inputs = list(_inputs(merged))
    of_merged = logits(_load(merged), inputs)
    moved = largest_difference(logits(_load(smollm2()), inputs), of_merged)
    with_adapter = largest_difference(logits(_with_adapter(run.folder / "adapter"), inputs), of_merged)
    of_gguf = logits(_load_gguf(run.folder / "gguf"), inputs)
    return [
        at_most("merged and adapter, largest difference of a logit", before=moved, after=with_adapter, bound=1e-3),
        at_most(
            "GGUF f16 and merged, mean KL divergence a token",
            before=divergence(logits(_load(smollm2()), inputs), of_merged),
            after=divergence(of_gguf, of_merged),
            bound=1e-5,
        ),
    ]


def logits(model: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return a model's logits for each text, (tokens, vocabulary)."""
    with torch.no_grad():
        return [model(input_ids=ids).logits[0].float() for ids in inputs]


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest difference between two logits at the same place."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def divergence(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the mean of KL(other, one) over all tokens, in nats."""
    found = [
        torch.nn.functional.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        for a, b in zip(one, other, strict=True)
    ]
    return torch.cat(found).mean().item()


def _inputs(folder: Path) -> Iterator[torch.Tensor]:
    import random

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    dice = random.Random(11)  # noqa: S311 - repeatable, not secret
    for order in (example(dice) for _ in range(_TEXTS)):
        chat = [{"role": "user", "content": order["prompt"]}, {"role": "assistant", "content": order["answer"]}]
        yield tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]


def _load(folder: Path, **how: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()


def _with_adapter(folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(_load(smollm2()), str(folder)).eval()


def _load_gguf(folder: Path) -> Any:
    file = next(folder.glob("*.gguf"))
    return _load(folder, gguf_file=file.name)
