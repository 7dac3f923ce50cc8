"""What tests of the train stage share: third-party warnings that cannot be helped, and a run with its loss curves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TrainResult
from finetune_contract.spec import Objective
from finetune_trainer.errors import TrainerError
from finetune_trainer.preemption import PREEMPTION
from tests.support.prepared import Case, make_config, make_environment, make_resolved, tiny_model, write_prepared

# pytest takes them as marks: `pytestmark = THIRD_PARTY`.
THIRD_PARTY = [
    # The old names are those that transformers 5.17 to 5.24 all have; PEFT and TRL use them as well.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated:FutureWarning"),
]


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    result: TrainResult
    run: Path

    @property
    def evaluation(self) -> dict[str, Any]:
        """evaluation.json."""
        content: dict[str, Any] = json.loads((self.run / paths.EVALUATION).read_text())
        return content

    @property
    def losses(self) -> dict[int, float]:
        """Training loss by step."""
        return {point["step"]: point["value"] for point in self.evaluation["training"]["losses"]}

    @property
    def held_out_losses(self) -> dict[int, float]:
        """Held-out loss by step."""
        return {point["step"]: point["value"] for point in self.evaluation["training"]["heldOutLosses"]}


def make_case(
    folder: Path,
    *,
    model: Path | None = None,
    method: str = "LoRA",
    spec: dict[str, Any] | None = None,
    **resolved: Any,
) -> Case:
    """Prepare a run of the tiny model in a folder."""
    import torch
    from transformers import AutoTokenizer

    # Steps of a tiny model are too short to be shared out: two threads would mostly wait for each other.
    torch.set_num_threads(1)
    model = model or tiny_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    output = folder / "out"
    config = make_config(output_uri=f"file://{output}", model_uri=f"file://{model}", method=method, **(spec or {}))
    pairs = config.spec.objective is not Objective.SFT
    sha256 = write_prepared(output / "run-1", tokenizer=tokenizer, resolved=make_resolved(**resolved), pairs=pairs)
    config = config.model_copy(update={"prepared_sha256": sha256})
    return Case(config=config, env=make_environment(folder), run=output / "run-1")


def train(case: Case) -> Outcome:
    """Run the train stage in this process."""
    from finetune_trainer.train import run_train

    done = run_train(case.config, case.env)
    assert done is not None
    return Outcome(result=done[0], run=case.run)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the signal come once a step has been reported, while the next one is trained."""
    from finetune_trainer.training.callbacks import Report

    report = Report._report_step

    def report_and_stop(self: Report, state: Any, logs: dict[str, float]) -> None:
        report(self, state, logs)
        if state.global_step == step:
            PREEMPTION.request()

    monkeypatch.setattr(Report, "_report_step", report_and_stop)


def stopped(case: Case, *, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the signal that comes after a step ends the run."""
    with monkeypatch.context() as patch:
        stop_after(after, patch)
        with pytest.raises(TrainerError) as failure:
            train(case)
    assert failure.value.code is ExitCode.PREEMPTED
    forget_preemption()


def forget_preemption() -> None:
    """Let the next run in this process not know of a signal of an earlier one."""
    PREEMPTION.__init__()  # type: ignore[misc]  # the process's one, as new
