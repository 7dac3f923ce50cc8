"""Base against tuned: a difference is called one only when it is, and bounds are held."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.evaluation import JudgeVerdict, Scores
from finetune_contract.exit_codes import ExitCode
from finetune_contract.measures import Gate
from finetune_contract.outcome import MAX_MESSAGE_BYTES, Manifest, TerminationMessage
from finetune_trainer.evaluation.bootstrap import difference_of_means
from finetune_trainer.evaluation.compare import summarise
from finetune_trainer.evaluation.gates import check_gate
from finetune_trainer.evaluation.judge import Judged
from finetune_trainer.evaluation.measured import Measured
from finetune_trainer.stage import run_stage
from tests.support.prepared import Case
from tests.support.training import THIRD_PARTY, make_case

pytestmark = THIRD_PARTY

# The intervals.


def verdict(base: list[float], tuned: list[float], metric: str = "exactMatch") -> str:
    models = (Measured(answer_scores={metric: tuple(scores)}) for scores in (base, tuned))
    (found,) = summarise(*models).comparisons
    return found.verdict


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        pytest.param([0] * 32, [1] * 32, "Better", id="all learnt"),
        pytest.param([1] * 32, [0] * 10 + [1] * 22, "Worse", id="a third lost"),
        pytest.param([0] * 32, [1] + [0] * 31, "NoClearDifference", id="one of many"),
        pytest.param([0] * 5, [1] * 5, "NoClearDifference", id="too few to tell"),
        pytest.param([0.5] * 32, [0.5] * 32, "NoClearDifference", id="equal"),
        pytest.param([1, 0] * 16, [0, 1] * 16, "NoClearDifference", id="as many lost as won"),
    ],
)
def test_a_difference_is_one_when_its_interval_leaves_out_zero(
    base: list[float], tuned: list[float], expected: str
) -> None:
    assert verdict(base, tuned) == expected


def test_a_lower_loss_is_better() -> None:
    base, tuned = (Measured(losses=tuple((factor * n, n) for n in range(5, 45))) for factor in (2.0, 1.5))

    (found,) = summarise(base, tuned).comparisons

    assert (found.metric, found.change, found.verdict) == ("loss", -0.5, "Better")


def test_pairing_finds_a_small_difference_between_very_different_examples() -> None:
    """Each example is a little better, while examples differ a hundred times as much from each other."""
    dice = random.Random(1)  # noqa: S311
    base = [(dice.uniform(0, 10), 1) for _ in range(40)]
    tuned = [(loss - dice.uniform(0, 0.1), 1) for loss, _ in base]

    found = difference_of_means(base, tuned)

    assert -0.1 < found.low < found.value < found.high < 0


def test_long_examples_count_by_their_tokens() -> None:
    assert difference_of_means([(10.0, 10), (10.0, 10)], [(0.0, 1), (30.0, 10)]).value == pytest.approx(30 / 11 - 1)


def test_equal_models_are_rarely_called_different() -> None:
    """A/A test: two models that are right by the same chance, three hundred times; 5 % is what 95 % promises."""
    dice = random.Random(2)  # noqa: S311
    called = sum(
        verdict(*([float(dice.random() < 0.6) for _ in range(48)] for _ in range(2))) != "NoClearDifference"
        for _ in range(300)
    )
    assert called / 300 < 0.09  # 5 % and three standard errors


def test_intervals_are_the_same_at_every_attempt() -> None:
    base, tuned = [(1.0, 2), (3.0, 1)] * 5, [(1.5, 2), (2.0, 1)] * 5

    assert difference_of_means(base, tuned) == difference_of_means(base, tuned)


# The gates.


@pytest.mark.parametrize(
    ("gate", "value", "passed"),
    [
        ({"metric": "exactMatch", "min": 0.9}, 0.95, True),
        ({"metric": "exactMatch", "min": 0.95}, 0.95, True),
        ({"metric": "exactMatch", "min": 0.96}, 0.95, False),
        ({"metric": "loss", "max": 1.5}, 1.6, False),
        ({"metric": "loss", "max": -0.5, "relativeTo": "base"}, -0.4, False),
        ({"metric": "exactMatch", "min": 0.5, "max": 0.9, "relativeTo": "base"}, 0.85, True),
        ({"metric": "rouge", "min": 0}, None, False),
    ],
)
def test_a_gate_is_held_against_what_was_measured(gate: dict[str, Any], value: float | None, passed: bool) -> None:
    base, tuned = Scores(loss=2.0, exact_match=0.1), Scores(loss=1.6, exact_match=0.95)

    found = check_gate(Gate.model_validate(gate), base=base, tuned=tuned)

    assert (found.value, found.passed) == (pytest.approx(value) if value is not None else None, passed)


@pytest.fixture(scope="module")
def below_its_gate(tmp_path_factory: pytest.TempPathFactory) -> Case:
    gates = [{"metric": "exactMatch", "min": 0.9}, {"metric": "loss", "max": 100}]
    spec = {"evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 2, "gates": gates}}
    return make_case(tmp_path_factory.mktemp("gate"), spec=spec, total_steps=2)


def last_word(case: Case, stage: Any) -> TerminationMessage:
    case.env.config.write_text(case.config.to_json())
    code = run_stage(stage, case.env)
    message = TerminationMessage.decode(case.env.termination_log.read_text())
    assert message is not None
    assert message.exit_code == code
    return message


def test_below_a_gate_the_outputs_are_kept_and_marked(below_its_gate: Case, capfd: pytest.CaptureFixture[str]) -> None:
    message = last_word(below_its_gate, "train")

    assert (message.exit_code, message.reason) == (ExitCode.GATE_FAILED, "GateFailed")
    assert message.message.startswith("evaluation.gates: exactMatch is 0, must be at least 0.9. The outputs are at")
    assert "Traceback" not in capfd.readouterr().err
    manifest = Manifest.model_validate_json((below_its_gate.run / paths.MANIFEST).read_bytes())
    assert manifest.gates_passed is False
    assert manifest.evaluation is not None
    assert [gate.passed for gate in manifest.evaluation.gates] == [False, True]
    assert manifest.artifacts.keys() == {"adapter", "merged"}
    assert message.trained is not None
    assert message.trained.artifacts == manifest.artifacts
    assert "FAILED" in (below_its_gate.run / paths.REPORT).read_text()
    assert "FAILED" in (below_its_gate.run / paths.MODEL_CARD).read_text()


@pytest.mark.parametrize("stage", ["train", "collect"])
def test_a_later_attempt_says_the_same(below_its_gate: Case, stage: str) -> None:
    """The pod's message was lost: nothing is trained again, and the job has not succeeded all the same."""
    before = (below_its_gate.run / paths.MANIFEST).read_bytes()

    message = last_word(below_its_gate.attempt(2), stage)

    assert (message.exit_code, message.reason) == (ExitCode.GATE_FAILED, "GateFailed")
    assert message.trained is not None
    assert message.sha256
    assert (below_its_gate.run / paths.MANIFEST).read_bytes() == before


def test_without_the_base_only_the_tuned_model_is_measured(tmp_path: Path) -> None:
    evaluation = {
        "metrics": ["exactMatch"],
        "maxNewTokens": 2,
        "compareWithBase": False,
        "samples": {"prompts": ["1 plus 1"]},
        "gates": [{"metric": "loss", "max": 100}],
    }
    case = make_case(tmp_path, spec={"evaluation": evaluation}, total_steps=2)

    message = last_word(case, "train")

    assert message.exit_code == 0
    assert message.trained is not None
    assert message.trained.evaluation is not None
    found = message.trained.evaluation
    assert (found.base, found.comparisons) == (Scores(), ())
    assert found.tuned.exact_match is not None
    assert not (case.run / "evaluation-base.json").exists()
    manifest = Manifest.model_validate_json((case.run / paths.MANIFEST).read_bytes())
    assert manifest.gates_passed is True


def test_the_fullest_evaluation_fits_a_termination_message() -> None:
    scores = dict.fromkeys(("exactMatch", "regex", "jsonValid", "jsonSchema", "rouge"), tuple(n / 7 for n in range(8)))
    values = Scores(**dict.fromkeys(Scores.model_fields, 0.123456))
    losses = ((1.234, 7),) * 9
    models = [Measured(scores=values, losses=losses, general_losses=losses, answer_scores=scores) for _ in range(2)]
    judged = Judged(verdicts=(*JudgeVerdict, None) * 2, warning="w" * 300)
    gate = Gate.model_validate({"metric": "jsonSchema", "min": 0.123456, "max": 0.987654, "relativeTo": "base"})
    evaluation = summarise(*models, gates=(gate,) * 8, judged=judged)
    artifact = {"path": "merged", "sha256": "a" * 64, "bytes": 10**11}
    message = TerminationMessage.model_validate(
        {
            "stage": "train",
            "exitCode": 23,
            "reason": "GateFailed",
            "message": "m" * 1500,
            "sha256": "b" * 64,
            "trained": {
                "step": 1000,
                "loss": 1.23456,
                "artifacts": dict.fromkeys(("adapter", "merged", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m"), artifact),
                "evaluation": evaluation.to_wire(),
            },
        }
    )

    decoded = TerminationMessage.decode(message.encode())

    assert len(message.encode().encode()) <= MAX_MESSAGE_BYTES
    assert decoded is not None
    assert decoded.trained is not None
    assert decoded.trained.evaluation is not None
    assert decoded.trained.evaluation.tuned.model_copy(update={"judge": 0.123456}) == values
