"""Before the fast path is used: does it compute of this model what transformers and PEFT do?

A few short examples pass both ways, packed and each alone, without a compiler: loss and gradients must agree. Families
differ in ways that no list of names knows, and a wrong gradient trains without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune_contract.spec import Precision
from finetune_trainer.data.dataset import Row
from finetune_trainer.fast.kernels.fp8 import dequantised
from finetune_trainer.fast.micro_batches import flatten
from finetune_trainer.fast.path import FastPath, flat
from finetune_trainer.logs import log
from finetune_trainer.model.build import computing

EXAMPLES, TOKENS = 3, 96
MOST = 1 << 20
"""Numbers of one tensor that are compared: all of an adapter's."""
LOSS, GRADIENT = 0.02, 0.15
"""Relative differences that are still those of number formats: gradients of a deep model in bfloat16 with random
weights, whose layers amplify any rounding, are the worst."""


def disagreement(model: Any, path: FastPath, rows: Sequence[Row], *, precision: Precision) -> str | None:
    """Return how the two ways differ; None if they agree. Raises what a pass raises."""
    short = [{"input_ids": ids, "labels": ids} for ids in (row["input_ids"][:TOKENS] for row in rows) if len(ids) > 1]
    was_training = model.training
    try:
        model.train()  # what dropout asks of attention shows here
        _fast_pass(model, path, short, precision)
        model.zero_grad(set_to_none=True)
        model.eval()
        with dequantised():
            found = _fast_pass(model, path, short, precision)
            expected = _plain_pass(model, short, precision)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return _difference(found, expected)


_Found = tuple[float, torch.Tensor]
"""The loss, and all gradients in one row."""


def _difference(found: _Found, expected: _Found) -> str | None:
    loss = abs(found[0] - expected[0]) / max(abs(expected[0]), 1e-9)
    gradient = float((found[1] - expected[1]).norm() / expected[1].norm().clamp(min=1e-12))
    said = f"the loss differs by {loss:.2%}, gradients by {gradient:.1%}"
    if loss <= LOSS and gradient <= GRADIENT:
        log.info("compared with transformers and PEFT: %s", said)
        return None
    return said


def _fast_pass(model: Any, path: FastPath, rows: Sequence[Row], precision: Precision) -> _Found:
    micro_batch = flatten(rows, pad_token_id=rows[0]["input_ids"][0]).to(model.device)
    with computing(precision), path.running(compiled=False), flat(micro_batch):
        loss = model(micro_batch=micro_batch)
        loss.backward()
    return loss.item(), gradients(model)


def _plain_pass(model: Any, rows: Sequence[Row], precision: Precision) -> _Found:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        with computing(precision):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, gradients(model)


def gradients(model: Any) -> torch.Tensor:
    """Return all gradients in one row."""
    return in_a_row([one.grad for one in model.parameters() if one.grad is not None])


def in_a_row(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors in one row, of large ones a part: those of a whole model would not fit beside it."""
    flat = [one.flatten() for one in tensors]
    return torch.cat([one[:: -(-len(one) // MOST)].float() for one in flat])
