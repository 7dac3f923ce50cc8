"""Preference objectives: losses as TRL computes them, steps that the micro-batch does not change, and whole runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import JobIdentity, RunConfig
from finetune_contract.spec import Objective, TuningSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.model.build import load_base
from finetune_trainer.preference.loss import Answers, Preference, reference_point
from finetune_trainer.preference.mismatch import OTHER, partners
from finetune_trainer.preference.passes import REFERENCE, held_out_preference, pair_collator, reference_of
from finetune_trainer.stage import run_stage
from finetune_trainer.training.loop import Loop
from tests.support.datasets import write_lines
from tests.support.models import tiny_llama
from tests.support.prepared import Case, make_environment
from tests.support.training import THIRD_PARTY, forget_preemption, make_case, stopped, train

pytestmark = THIRD_PARTY

TOLERANCE = 2e-5
"""float32, sums in another order."""
RATE = 1e-2


@pytest.fixture(autouse=True)
def _no_signal_before() -> Iterator[None]:
    forget_preemption()
    yield
    forget_preemption()


def case_of(
    folder: Path, objective: str, *, method: str = "LoRA", spec: dict[str, Any] | None = None, **resolved: Any
) -> Case:
    """Prepare a run on pairs: sums, and the same sums done wrong."""
    settings = {"beta": 0.5, "learning_rate": RATE, **resolved}
    return make_case(folder, method=method, spec={"objective": objective, **(spec or {})}, **settings)


def answers(*pairs: tuple[float, float], counts: tuple[int, int] = (1, 1)) -> Answers:
    return Answers(sums=torch.tensor(pairs), counts=torch.tensor([counts] * len(pairs)))


def test_dpo_is_the_papers_equation_7() -> None:
    preference = Preference(Objective.DPO, beta=0.5)

    found = preference.compare(answers((-1.0, -4.0), (-2.0, -1.0)), torch.tensor([[-2.0, -3.0], [-2.0, -2.0]]))

    margins = [0.5 * ((-1 + 2) - (-4 + 3)), 0.5 * ((-2 + 2) - (-1 + 2))]
    assert found.margins.tolist() == pytest.approx(margins)
    assert found.losses.tolist() == pytest.approx([math.log1p(math.exp(-margin)) for margin in margins])


def test_orpo_is_the_papers_equations_4_to_7() -> None:
    found = Preference(Objective.ORPO, beta=0.25).compare(answers((-2.0, -6.0), counts=(4, 3)), None)

    better, worse = math.exp(-0.5), math.exp(-2)
    ratio = (better / (1 - better)) / (worse / (1 - worse))
    assert found.losses.item() == pytest.approx(0.5 - 0.25 * math.log(ratio / (1 + ratio)))
    assert found.margins.item() == pytest.approx(0.25 * 1.5)


def test_kto_is_the_papers_equations_7_and_8() -> None:
    """One of the pairs only fills the batch."""
    preference = Preference(Objective.KTO, beta=0.5)
    pairs = Answers(torch.tensor([[-1.0, -4.0], [0.0, 0.0]]), torch.tensor([[3, 4], [0, 0]]))

    found = preference.compare(pairs, torch.tensor([[-2.0, -3.0], [-9.0, -9.0]]), z0=0.25)

    desirable, undesirable = (1 - 1 / (1 + math.exp(-0.5 * value)) for value in (1 - 0.25, 0.25 - -1))
    assert found.losses.tolist() == pytest.approx([(desirable + undesirable) / 2])
    assert found.margins.tolist() == pytest.approx([0.5 * (1 - -1)])


@pytest.mark.parametrize(("drifts", "rows", "z0"), [(3.0, 2, 1.5), (-3.0, 2, 0.0), (0.0, 0, 0.0)])
def test_z0_is_a_mean_and_never_negative(drifts: float, rows: int, z0: float) -> None:
    assert reference_point(drifts, rows) == z0


def test_held_out_kto_is_held_to_all_held_out_mismatches(tmp_path: Path) -> None:
    """Log-ratios of 1, -1 and, on mismatched rows, 0 and 1 in turns: z0 is their mean."""
    from trl.trainer.utils import add_fused_lm_head

    case = case_of(tmp_path, "KTO", micro_batch_size=1)
    prepared = Prepared.model_validate_json((case.run / paths.PREPARED).read_bytes())
    model = load_base(tmp_path / "model", dtype=torch.float32)
    add_fused_lm_head(model)  # as the loop does
    pairs = rows(case)[:6]
    asked = [{**row, OTHER: other} for row, other in zip(pairs, partners(pairs), strict=True)]
    own = reference_of(model, asked, prepared=prepared)
    known = [
        {**row, REFERENCE: [better - 1, worse + 1, other - place % 2]}
        for place, (row, (better, worse, other)) in enumerate(zip(asked, own, strict=True))
    ]

    found = held_out_preference(model, known, preference=Preference(Objective.KTO, beta=2.0), prepared=prepared)

    desirable, undesirable = (1 / (1 + math.exp(2 * value)) for value in (1 - 0.5, 0.5 + 1))
    assert found.loss == pytest.approx((desirable + undesirable) / 2, abs=TOLERANCE)
    assert found.margin == pytest.approx(4.0, abs=TOLERANCE)
    assert found.accuracy == 1


def test_what_the_base_model_said_reaches_the_loss_as_it_was(tmp_path: Path) -> None:
    """No tensor: with DeepSpeed, Trainer would cast it to bfloat16, which knows -123.456 as -123.5."""
    case = case_of(tmp_path, "DPO")
    prepared = Prepared.model_validate_json((case.run / paths.PREPARED).read_bytes())
    known = [{**row, REFERENCE: [-123.456, -7.5]} for row in rows(case)[:2]]

    batch = pair_collator(prepared, known)(known)

    assert batch[REFERENCE] == [[-123.456, -7.5]] * 2


@pytest.mark.parametrize("method", ["LoRA", "Full"])
@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_steps_are_those_of_trls_trainer(tmp_path: Path, objective: str, method: str) -> None:
    """On the same tokens, all pairs in one step."""
    constant = {"hyperparameters": {"scheduler": "constant", "warmupRatio": 0.0}}
    case = case_of(tmp_path, objective, method=method, spec=constant, batch_size=29, micro_batch_size=29, total_steps=8)

    history = trls_history(case, tmp_path / "trl")

    assert list(train(case).losses.values()) == pytest.approx(_values(history, "loss"), abs=TOLERANCE)
    if objective == "KTO":
        assert max(_values(history, "kl")) > 0.01  # or z0 would have no part in it


def _values(history: list[dict[str, float]], name: str) -> list[float]:
    return [entry[name] for entry in history if name in entry]


def trls_history(case: Case, folder: Path) -> list[dict[str, float]]:
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, set_seed

    objective = case.config.spec.objective
    model_folder = Path(case.config.spec.model.uri.removeprefix("file://"))
    model, reference = (load_base(model_folder, dtype=torch.float32) for _ in range(2))
    if case.config.spec.method == "LoRA":
        set_seed(42)
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    arguments = getattr(trl, f"{objective}Config")(
        output_dir=str(folder), beta=0.5, learning_rate=RATE, max_steps=8,
        per_device_train_batch_size=29 if objective == "DPO" else 2 * 29,
        lr_scheduler_type="constant", logging_steps=1, report_to="none", use_cpu=True, bf16=False, max_length=None,
        gradient_checkpointing=False, dataloader_pin_memory=False, save_strategy="no", weight_decay=0.0,
        disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = getattr(trl, f"{objective}Trainer")(
        model=model,
        ref_model=None if case.config.spec.method == "LoRA" else reference,
        args=arguments,
        train_dataset=Dataset.from_list([_as_trl_wants(row, tokenizer) for row in rows(case)]),
        processing_class=tokenizer,
    )
    if objective == "KTO":
        trainer.train_dataset = _with_our_mismatches(trainer.train_dataset, rows(case))
    trainer.train()
    found: list[dict[str, float]] = trainer.state.log_history
    return found


def _with_our_mismatches(unpaired: Any, pairs: list[dict[str, list[int]]]) -> Any:
    """Return TRL's examples, all better answers first, with the partners that we choose.

    TRL's own depend on the micro-batch: each answer, worse ones too, goes to the next prompt in it.
    """
    answers, others = unpaired["completion_ids"], partners(pairs)
    chosen = [answers[others[place % len(pairs)]] for place in range(len(answers))]
    return unpaired.remove_columns("KL_completion_ids").add_column("KL_completion_ids", chosen)


def rows(case: Case) -> list[dict[str, list[int]]]:
    found: list[dict[str, list[int]]] = parquet.read_table(case.run / "prepared/train-00000.parquet").to_pylist()
    return found


def _as_trl_wants(row: dict[str, list[int]], tokenizer: Any) -> dict[str, str]:
    """Return texts, which TRL tokenises itself, an end-of-text token at the end of each answer."""
    prompt = sum(label == -100 for label in row["labels"])
    parts = row["input_ids"][:prompt], row["input_ids"][prompt:-1], row["rejected_ids"][prompt:-1]
    texts = [tokenizer.decode(ids) for ids in parts]
    return {"prompt": texts[0], "chosen": f" {texts[1]}", "rejected": f" {texts[2]}"}


@pytest.mark.parametrize("objective", ["DPO", "ORPO", "KTO"])
def test_the_micro_batch_does_not_change_a_step(tmp_path: Path, objective: str) -> None:
    """29 pairs in steps of 8: an epoch's last step has 5."""
    whole, parts = (
        train(case_of(tmp_path / str(size), objective, method="Full", micro_batch_size=size)) for size in (8, 1)
    )

    assert parts.losses == pytest.approx(whole.losses, abs=TOLERANCE)
    assert parts.held_out_losses == pytest.approx(whole.held_out_losses, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("objective", "method"),
    [("DPO", "LoRA"), ("DPO", "Full"), ("ORPO", "LoRA"), ("ORPO", "Full"), ("KTO", "QLoRA"), ("KTO", "Full")],
)
def test_the_better_answer_comes_to_be_preferred(tmp_path: Path, objective: str, method: str) -> None:
    case = case_of(tmp_path, objective, method=method, total_steps=12, eval_every_steps=4)

    outcome = train(case)

    training = outcome.evaluation["training"]
    margins = [point["value"] for point in training["heldOutMargins"]]
    assert margins[-1] > margins[0]
    assert training["heldOutAccuracies"][-1]["value"] > 0.5
    assert outcome.result.eval_loss == min(outcome.held_out_losses.values()) < outcome.losses[1]
    assert (case.run / paths.MANIFEST).exists()


def test_the_best_weights_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not those of the best step show before they are exported."""
    monkeypatch.setattr(Loop, "load_best", lambda loop: loop.model.get_output_embeddings().weight.data.mul_(9))

    with pytest.raises(TrainerError, match="The best weights give a held-out loss") as failure:
        train(case_of(tmp_path, "ORPO", total_steps=2))
    assert failure.value.code is ExitCode.INTERNAL_ERROR


@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_the_base_model_is_asked_once_a_run(tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run goes on with what the first attempt knows of the base model, and ends as an undisturbed one."""
    spec = {"lora": {"dropout": 0.2}}
    undisturbed = train(case_of(tmp_path / "undisturbed", objective, spec=spec, eval_every_steps=3))
    case = case_of(tmp_path / "disturbed", objective, spec=spec, eval_every_steps=3)
    stopped(case, after=2, monkeypatch=monkeypatch)
    monkeypatch.setattr(
        "finetune_trainer.preference.reference.reference_of", lambda *_, **__: pytest.fail("asks again")
    )

    resumed = train(case.attempt(2))

    assert resumed.result.resumed_from_step == 3
    assert resumed.losses == undisturbed.losses
    assert resumed.held_out_losses == undisturbed.held_out_losses


TEXT = [{"prompt": f"{n} plus {n}", "chosen": f" {2 * n}", "rejected": f" {2 * n + 1} plus"} for n in range(30)]
TURNS = [
    {
        "prompt": [{"role": "user", "content": f"Is {n} more than {n - 1}?"}],
        "chosen": [{"role": "assistant", "content": f"Yes, {n} is."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for n in range(30)
]


@pytest.mark.parametrize(
    ("objective", "examples"),
    [("DPO", TURNS), ("ORPO", TEXT), ("KTO", TURNS)],
    ids=["DPO-turns", "ORPO-text", "KTO-turns"],
)
def test_preferences_go_the_whole_way(tmp_path: Path, objective: str, examples: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    data = write_lines(tmp_path / "data.jsonl", examples)
    spec: dict[str, Any] = {
        "method": "LoRA",
        "objective": objective,
        "model": {"uri": f"file://{tiny_llama(tmp_path / 'model')}"},
        "dataset": {"uri": f"file://{data}"},
        "output": {"uri": f"file://{tmp_path}/out"},
        "hyperparameters": {"maxSteps": 6, "batchSize": 8, "learningRate": 1e-2, "precision": "float32"},
        "evaluation": {"everySteps": 3},
    }
    env = make_environment(tmp_path)
    job = JobIdentity(name="taste", namespace="default", uid="a-uid")
    config = RunConfig(job=job, spec=TuningSpec.model_validate(spec), config_hash="a-hash")
    env.config.write_text(config.to_json())

    assert [run_stage(stage, env) for stage in ("prepare", "train")] == [0, 0]

    run = tmp_path / "out" / "run-1"
    prepared = Prepared.model_validate_json((run / paths.PREPARED).read_bytes())
    assert (prepared.dataset.format, prepared.resolved.loss) == ("preference", "completion")
    assert (prepared.resolved.beta, prepared.resolved.packing) == (0.1, False)
    training = json.loads((run / paths.EVALUATION).read_text())["training"]
    assert training["heldOutMargins"][-1]["value"] > 0
    assert "| Objective | " + objective in (run / paths.MODEL_CARD).read_text()
    assert "Better answer preferred" in (run / paths.REPORT).read_text()
    assert json.loads((run / paths.MANIFEST).read_text())["objective"] == objective
