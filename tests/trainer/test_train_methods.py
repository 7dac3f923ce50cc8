"""Each method from prepared data to manifest, and what its outputs are: LoRA, QLoRA, Full."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.outcome import Manifest
from finetune_contract.spec import Precision
from finetune_trainer.evaluation.evaluate import held_out_loss
from tests.support.training import THIRD_PARTY, make_case, train

pytestmark = THIRD_PARTY

EVALUATION = {
    "evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 3, "samples": {"prompts": ["1 plus 1", "<script>"]}}
}


@pytest.mark.parametrize(
    ("method", "artifacts"),
    [("LoRA", {"adapter", "merged"}), ("QLoRA", {"adapter", "merged"}), ("Full", {"merged"})],
)
def test_a_run_ends_with_a_manifest_of_all_its_outputs(tmp_path: Path, method: str, artifacts: set[str]) -> None:
    case = make_case(tmp_path, method=method, spec=EVALUATION, precision=Precision.BFLOAT16, packing=True)

    outcome = train(case)

    manifest = Manifest.model_validate_json((case.run / paths.MANIFEST).read_bytes())
    assert set(manifest.artifacts) == set(outcome.result.artifacts) == artifacts
    for file in manifest.files:
        content = (case.run / file.path).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (file.bytes, file.sha256)
    listed = {file.path for file in manifest.files}
    assert {paths.EVALUATION, paths.REPORT, paths.MODEL_CARD} <= listed
    assert not any(path.startswith(paths.CHECKPOINTS) for path in listed)
    assert (manifest.merged_from is None) == (method == "Full")


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
def test_training_lowers_the_held_out_loss(tmp_path: Path, method: str) -> None:
    outcome = train(make_case(tmp_path, method=method, total_steps=10, learning_rate=1e-2))

    evaluation = outcome.result.evaluation
    assert evaluation is not None
    assert evaluation.tuned.loss < evaluation.base.loss  # type: ignore[operator]
    assert outcome.result.eval_loss == pytest.approx(min(outcome.held_out_losses.values()), rel=1e-5)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_the_weights_of_the_lowest_held_out_loss_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    measured = 0

    def worse_from_the_fourth_on(*args: Any, **kwargs: Any) -> float:
        nonlocal measured
        measured += 1
        return held_out_loss(*args, **kwargs) + (1.0 if measured > 3 else 0.0)

    monkeypatch.setattr("finetune_trainer.training.loop.held_out_loss", worse_from_the_fourth_on)

    outcome = train(make_case(tmp_path, method=method, total_steps=6, eval_every_steps=1, learning_rate=1e-2))

    assert outcome.evaluation["training"]["bestStep"] == 3
    # The evaluation after training is not tampered with: it sees the weights that are exported.
    assert outcome.evaluation["tuned"]["loss"] == pytest.approx(outcome.held_out_losses[3], rel=1e-6)


def test_both_models_answer_every_prompt(tmp_path: Path) -> None:
    outcome = train(make_case(tmp_path, spec=EVALUATION))

    assert [sample["prompt"] for sample in outcome.evaluation["samples"]] == ["1 plus 1", "<script>"]
    assert len(outcome.evaluation["examples"]) == 5
    assert {"prompt", "expected", "base", "tuned"} <= outcome.evaluation["examples"][0].keys()


def test_a_complete_run_is_returned_without_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path)
    first = train(case)
    monkeypatch.setattr("finetune_trainer.train._gather", lambda *_: pytest.fail("works again"))

    again = train(case.attempt(2))

    assert again.result == first.result


def test_merged_weights_can_be_left_out(tmp_path: Path) -> None:
    outcome = train(
        make_case(tmp_path, spec={"output": {"uri": f"file://{tmp_path}/out", "merged": {"enabled": False}}})
    )

    assert set(outcome.result.artifacts) == {"adapter"}
    assert not (outcome.run / paths.MERGED).exists()


def test_a_micro_batch_that_the_operator_lowered_is_taken(tmp_path: Path) -> None:
    outcome = train(make_case(tmp_path, spec={"hyperparameters": {"microBatchSize": 2}}, micro_batch_size=8))

    assert outcome.evaluation["training"]["microBatchSize"] == 2
