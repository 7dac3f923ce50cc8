"""Passes of a model over pairs: batches of them, and what is measured without gradients.

A pair's better and worse answers are two sequences of one pass; KTO's mismatched ones are passed on their own, without
gradients: as many sequences as pairs, and none longer than both answers with their prompts, so that such a pass never
needs as much memory as a step's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_contract.prepared import Prepared
from finetune_trainer.data.dataset import IGNORED, Row, collator
from finetune_trainer.model.build import measuring
from finetune_trainer.parallel.distributed import stop_if_told, world
from finetune_trainer.preference.loss import MISMATCHED, Answers, Preference, reference_point
from finetune_trainer.preference.mismatch import OTHER, mismatched

REFERENCE = "reference"
"""Column of what the base model makes of a pair's answers: one number an answer, in the columns of `Answers`.

In a batch it stays a list: Trainer casts tensors of floats to bfloat16 with DeepSpeed, and these are hundreds.
"""
MISMATCH = "mismatch"
"""Part of a batch: its mismatched rows, a batch of their own."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Means over the held-out pairs."""

    loss: float
    accuracy: float
    """Share of pairs of which the better answer has the higher reward."""
    margin: float


def pair_collator(prepared: Prepared, rows: Any) -> Callable[[Sequence[Row]], dict[str, Any]]:
    """Return what makes a batch of some of the rows: all better answers, then all worse ones, each after its prompt."""
    padded, longest = collator(prepared, flatten=False), prepared.resolved.max_sequence_length

    def collate(chosen: Sequence[Row]) -> dict[str, Any]:
        better = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in chosen]
        worse = [{"input_ids": row["rejected_ids"], "labels": row["rejected_labels"]} for row in chosen]
        batch: dict[str, Any] = padded(better + worse)
        if OTHER in chosen[0]:
            others = [mismatched(row, rows[row[OTHER]], longest=longest) for row in chosen]
            batch[MISMATCH] = padded([{name: other[name] for name in ("input_ids", "labels")} for other in others])
        if REFERENCE in chosen[0]:
            batch[REFERENCE] = [row[REFERENCE] for row in chosen]
        return batch

    return collate


def answers_of(model: Any, inputs: dict[str, Any], *, columns: int = MISMATCHED) -> Answers:
    """Return what a model makes of a batch whose sequences are all first answers, then all second ones, and so on."""
    output = model(**inputs, fused_lm_head=True, use_cache=False)
    sums, counts = output.log_probs.float().sum(-1), inputs["labels"][:, 1:].ne(IGNORED).sum(-1)
    return Answers(sums=sums.view(columns, -1).T, counts=counts.view(columns, -1).T)


def drift_of(model: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """Return the sum of log(model / base) over a batch's mismatched rows, and the number of rows."""
    found = answers_of(model, batch[MISMATCH], columns=1)
    base = torch.tensor(batch[REFERENCE]).to(found.sums)
    drifts = found.sums[:, 0] - base[:, MISMATCHED]
    return drifts[found.real].double().sum().item(), int(found.real.sum())


def held_out_preference(
    model: Any,
    rows: Sequence[Row],
    *,
    preference: Preference,
    prepared: Prepared,
    safe_point: Callable[[], None] = stop_if_told,
) -> HeldOut:
    """Measure the objective on held-out pairs; `safe_point` is called between batches and may raise."""
    answers = _answers(model, rows, prepared=prepared, safe_point=safe_point)
    reference, z0 = None, 0.0
    if REFERENCE in rows[0]:
        reference = torch.tensor([row[REFERENCE] for row in rows], dtype=torch.float64)
        drifts = (answers.sums - reference)[:, MISMATCHED:]
        z0 = reference_point(drifts.sum().item(), drifts.numel())
    found = preference.compare(answers, reference, z0=z0)
    accuracy = (found.margins > 0).double().mean().item()
    return HeldOut(found.losses.mean().item(), accuracy, found.margins.mean().item())


def reference_of(model: Any, rows: Sequence[Row], *, prepared: Prepared) -> list[list[float]]:
    """Return what the model, still the base, makes of each row's answers, in the columns of `Answers`."""
    found: list[list[float]] = _answers(model, rows, prepared=prepared, safe_point=stop_if_told).sums.tolist()
    return found


def _answers(model: Any, rows: Sequence[Row], *, prepared: Prepared, safe_point: Callable[[], None]) -> Answers:
    """Return what a model makes of all rows, in their order; longest pairs first, the ranks share the batches."""
    collate, batches = pair_collator(prepared, rows), _batches(rows, prepared)

    def passed(places: list[int]) -> list[tuple[list[float], list[int]]]:
        batch = collate([rows[place] for place in places])
        parts = [answers_of(model, _inputs(batch, model))]
        if MISMATCH in batch:
            parts.append(answers_of(model, _inputs(batch[MISMATCH], model), columns=1))
        sums, counts = torch.cat([part.sums for part in parts], 1), torch.cat([part.counts for part in parts], 1)
        return list(zip(sums.tolist(), counts.tolist(), strict=True))

    with measuring(model, prepared.resolved.precision):
        measured = world().share(batches, passed, safe_point=safe_point)
    found = {
        place: row
        for places, part in zip(batches, measured, strict=True)
        for place, row in zip(places, part, strict=True)
    }
    sums, counts = zip(*(found[place] for place in range(len(rows))), strict=True)
    return Answers(sums=torch.tensor(sums, dtype=torch.float64), counts=torch.tensor(counts))


def _inputs(batch: dict[str, Any], model: Any) -> dict[str, torch.Tensor]:
    return {name: batch[name].to(model.device) for name in ("input_ids", "labels", "attention_mask")}


def _batches(rows: Sequence[Row], prepared: Prepared) -> list[list[int]]:
    size = max(1, prepared.resolved.micro_batch_size)
    by_length = sorted(range(len(rows)), key=lambda place: -_pair_length(rows[place]))
    return [by_length[start : start + size] for start in range(0, len(rows), size)]


def _pair_length(row: Row) -> int:
    """Return the tokens of the longer side."""
    return max(len(row["input_ids"]), len(row["rejected_ids"]))
