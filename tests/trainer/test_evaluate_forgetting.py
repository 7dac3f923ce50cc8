"""Forgetting: perplexity on text beside the task, ours or the user's, before and after."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from finetune_contract.exit_codes import ExitCode
from finetune_contract.measures import Forgetting, Measure
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation import evaluate
from finetune_trainer.evaluation.compare import summarise
from finetune_trainer.evaluation.forgetting import MAX_BYTES, MAX_TOKENS, general_rows, paragraphs
from finetune_trainer.evaluation.measured import Measured
from tests.support.models import smollm2
from tests.support.prepared import make_config
from tests.support.training import THIRD_PARTY, Outcome, make_case, train

pytestmark = THIRD_PARTY


def test_the_text_that_comes_with_the_trainer_is_many_short_paragraphs() -> None:
    found = paragraphs(Forgetting())

    assert len(found) == len(set(found)) == 50
    assert all(20 < len(text.split()) < 90 for text in found)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\nline\n\n\n two \r\n\r\nthree", ["one\nline", "two", "three"]),
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two\\n\\nparts"}\n', ["one", "two\n\nparts"]),
    ],
)
def test_text_of_ones_own(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())

    assert paragraphs(Forgetting(uri=f"file://{tmp_path}/{name}")) == expected


@pytest.mark.parametrize(
    ("name", "content", "code", "sentence"),
    [
        ("a.txt", None, ExitCode.DATASET_NOT_FOUND, "nothing lies at"),
        ("a.txt", b" \n\n ", ExitCode.CONFIG_INVALID, "has no text in it"),
        ("a.txt", b"\xff\xfe", ExitCode.CONFIG_INVALID, "is not UTF-8 text"),
        ("a.txt", b"x" * (MAX_BYTES + 1), ExitCode.CONFIG_INVALID, "take a sample"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', ExitCode.CONFIG_INVALID, 'line 2 is not {"text": "..."}'),
        ("a.jsonl", b"plain\n", ExitCode.CONFIG_INVALID, "line 1 is not"),
    ],
)
def test_text_that_cannot_be_used_names_its_field(
    tmp_path: Path, name: str, content: bytes | None, code: ExitCode, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(TrainerError, match=r"^evaluation\.forgetting\.uri: .*") as failure:
        paragraphs(Forgetting(uri=f"file://{tmp_path}/{name}"))
    assert failure.value.code is code
    assert sentence in failure.value.message


def test_rows_are_whole_paragraphs_at_most_so_long(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 2000)
    evaluation = {"forgetting": {"uri": f"file://{tmp_path}/long.txt"}}
    config = make_config(output_uri="file:///out", model_uri="file:///model", evaluation=evaluation)
    tokenizer = AutoTokenizer.from_pretrained(smollm2())

    (row,) = general_rows(config, tokenizer)
    ours = general_rows(make_config(output_uri="file:///out", model_uri="file:///model"), tokenizer)

    assert row["labels"] == row["input_ids"]
    assert len(row["input_ids"]) == MAX_TOKENS
    assert max(len(each["input_ids"]) for each in ours) < MAX_TOKENS
    assert sum(len(each["input_ids"]) for each in ours) < 4000  # a few seconds of a small model on a CPU


@pytest.mark.parametrize("off", [{"compareWithBase": False}, {"forgetting": {"enabled": False}}])
def test_it_can_be_switched_off(off: dict[str, Any]) -> None:
    config = make_config(output_uri="file:///out", model_uri="file:///model", evaluation=off)

    assert general_rows(config, tokenizer=None) == []


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that learns sums at a rate that hurts, measured on numbers that no sum has."""
    folder = tmp_path_factory.mktemp("forgetful")
    (folder / "general.txt").write_text("\n\n".join(f"{n} {n + 30} {119 - n} {n + 9}" for n in range(60, 90)))
    evaluation = {
        "forgetting": {"uri": f"file://{folder}/general.txt"},
        "gates": [{"metric": "forgetting", "max": 1.02}],
    }
    return train(
        make_case(
            folder,
            spec={"evaluation": evaluation},
            total_steps=40,
            learning_rate=1e-2,
            method="Full",
            eval_every_steps=20,
            checkpoint_every_steps=40,
        )
    )


def test_what_is_forgotten_is_a_ratio_with_its_interval_and_can_fail_a_gate(forgetful: Outcome) -> None:
    summary = forgetful.result.evaluation
    assert summary is not None
    before, after = summary.base.general_perplexity, summary.tuned.general_perplexity
    assert before is not None
    assert after is not None
    found = next(each for each in summary.comparisons if each.metric is Measure.FORGETTING)
    assert found.change == pytest.approx(after / before, rel=1e-3)
    assert 1 < found.low < found.change < found.high
    assert found.verdict == "Worse"
    (gate,) = summary.gates
    assert (gate.value, gate.passed) == (pytest.approx(after / before, rel=1e-4), False)
    assert "Perplexity on general text" in (forgetful.run / "report.html").read_text()
    kept = json.loads((forgetful.run / "evaluation-base.json").read_text())["measured"]["generalLosses"]
    assert len(kept) == 30
    assert math.exp(sum(loss for loss, _ in kept) / sum(n for _, n in kept)) == pytest.approx(before, rel=1e-5)


def test_text_that_changed_between_two_attempts_is_measured_again(tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("1 plus 2\n\n3 plus 4")
    evaluation = {"forgetting": {"uri": f"file://{text}"}}
    case = make_case(tmp_path, spec={"evaluation": evaluation}, total_steps=1)
    train(case)
    (case.run / "manifest.json").unlink()
    text.write_text("1 plus 2\n\n3 plus 4\n\n5 plus 6")

    train(case.attempt(2))

    kept = json.loads((case.run / "evaluation-base.json").read_text())["measured"]["generalLosses"]
    assert len(kept) == 3


def test_a_loss_that_is_no_number_does_not_lose_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = evaluate.example_losses

    def broken(model: Any, rows: Any, **settings: Any) -> list[tuple[float, int]]:
        found = losses(model, rows, **settings)
        return found if len(rows) < 50 else [(math.nan, 1), *found[1:]]

    monkeypatch.setattr(evaluate, "example_losses", broken)

    result = train(make_case(tmp_path, total_steps=1)).result

    assert result.evaluation is not None
    assert result.evaluation.tuned.general_perplexity is None


def test_equal_models_have_forgotten_nothing() -> None:
    model = Measured(general_losses=tuple((float(n), n + 1) for n in range(9)))

    (found,) = summarise(model, model).comparisons

    assert (found.change, found.low, found.high, found.verdict) == (1, 1, 1, "NoClearDifference")
