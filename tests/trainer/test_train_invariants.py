"""What must not change a step: micro-batch, packing, recomputation; and that a step is what it is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from trl.trainer import utils as trl_utils

from finetune_trainer.data.dataset import IGNORED
from finetune_trainer.evaluation.evaluate import held_out_loss
from finetune_trainer.model.build import load_base
from tests.support.prepared import PAD, Case
from tests.support.training import THIRD_PARTY, Outcome, make_case, train

pytestmark = THIRD_PARTY

TOLERANCE = 2e-5
"""float32, sums in another order."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(make_case(tmp_path_factory.mktemp("reference"), micro_batch_size=8))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batch_size": 1}, id="1x8 accumulation equals 8x1"),
        pytest.param({"micro_batch_size": 4}, id="2x4"),
        pytest.param({"micro_batch_size": 8, "packing": True}, id="flattened, one pass"),
        pytest.param({"micro_batch_size": 2, "packing": True}, id="flattened, four passes"),
        pytest.param({"micro_batch_size": 8, "gradient_checkpointing": True}, id="recomputed"),
    ],
)
def test_how_a_step_is_computed_does_not_change_it(tmp_path: Path, reference: Outcome, changes: dict[str, Any]) -> None:
    other = train(make_case(tmp_path, **changes))

    assert other.losses == pytest.approx(reference.losses, abs=TOLERANCE)
    assert other.held_out_losses == pytest.approx(reference.held_out_losses, abs=TOLERANCE)


def test_padding_at_the_end_costs_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend, masks = torch.nn.functional.scaled_dot_product_attention, []

    def watched(*args: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
        masks.append(attn_mask if torch.is_grad_enabled() else None)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    train(make_case(tmp_path, micro_batch_size=8, total_steps=1))

    assert masks
    assert all(mask is None for mask in masks)


def test_the_head_scores_the_tokens_that_count_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, scored = trl_utils._ChunkedLogProbFunction.apply, []

    def watched(hidden: torch.Tensor, *args: Any) -> Any:
        scored.append(len(hidden))
        return score(hidden, *args)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", watched)
    case = make_case(tmp_path, batch_size=29, micro_batch_size=29, total_steps=1)
    train(case)

    (shard,) = case.run.glob("**/train-*.parquet")
    counted = sum(label != IGNORED for labels in parquet.read_table(shard)["labels"].to_pylist() for label in labels)
    assert counted in scored


def test_two_runs_of_one_seed_are_equal(tmp_path: Path, reference: Outcome) -> None:
    assert train(make_case(tmp_path, micro_batch_size=8)).losses == reference.losses


def test_another_seed_gives_another_order(tmp_path: Path, reference: Outcome) -> None:
    other = train(make_case(tmp_path, micro_batch_size=8, spec={"hyperparameters": {"seed": 7}}))

    assert other.losses != reference.losses


def test_the_loss_curve_is_that_of_a_plain_torch_loop(tmp_path: Path) -> None:
    """Full tuning against a loop of twenty lines, on the same order of examples: all of them in one step."""
    spec = {"hyperparameters": {"scheduler": "constant", "warmupRatio": 0.0}}
    case = make_case(
        tmp_path, method="Full", spec=spec, batch_size=29, micro_batch_size=29, total_steps=4, learning_rate=1e-3
    )

    assert list(train(case).losses.values()) == pytest.approx(plain_losses(case, steps=4, rate=1e-3), abs=TOLERANCE)


def plain_losses(case: Case, *, steps: int, rate: float) -> list[float]:
    model = load_base(Path(case.config.spec.model.uri.removeprefix("file://")), dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        total, counted = torch.tensor(0.0), 0
        for row in rows(case, "train"):
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"])[1:]
            total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            counted += int(labels.ne(-100).sum())
        (total / counted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / counted).item())
    return losses


def rows(case: Case, split: str) -> list[dict[str, list[int]]]:
    found: list[dict[str, list[int]]] = parquet.read_table(case.run / f"prepared/{split}-00000.parquet").to_pylist()
    return found


def test_the_held_out_loss_is_the_mean_over_all_counted_tokens(tmp_path: Path) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from finetune_contract.prepared import Prepared

    case = make_case(tmp_path, micro_batch_size=2, max_sequence_length=32)
    prepared = Prepared.model_validate_json((case.run / "prepared/prepared.json").read_bytes())
    model = load_base(Path(case.config.spec.model.uri.removeprefix("file://")), dtype=torch.float32)
    total, counted = 0.0, 0
    for row in rows(case, "validation"):
        labels = torch.tensor(row["labels"])[1:]
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        counted += int(labels.ne(-100).sum())
    add_fused_lm_head(model)

    measured = held_out_loss(model, rows(case, "validation"), prepared=prepared)

    assert prepared.pad_token_id == PAD
    assert measured == pytest.approx(total / counted, abs=1e-5)
