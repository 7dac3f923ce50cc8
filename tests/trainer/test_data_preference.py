"""Data of preferences: what is read as a pair, what is refused, and what the shards hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetune_contract.dataset_spec import DatasetFormat, DatasetSource
from finetune_contract.exit_codes import ExitCode
from finetune_contract.fitting import ResolveError
from finetune_contract.resolve import choose_loss
from finetune_contract.spec import LossOn, TuningSpec
from finetune_trainer.data.examples import Conversation, Example, PromptCompletion
from finetune_trainer.data.formats import Reading, parse
from finetune_trainer.data.parts import data_parts
from finetune_trainer.data.shards import Cut, Spool, write_shards
from finetune_trainer.data.sides import other_side, paired, with_other_sides
from finetune_trainer.data.survey import Survey, survey
from finetune_trainer.data.tokenize import IGNORED, Encoded, Encoder
from finetune_trainer.errors import TrainerError
from tests.support.datasets import write_lines
from tests.support.models import smollm2


def example_of(record: dict[str, Any]) -> Example:
    return parse(record, Reading(DatasetFormat.PREFERENCE))[1]


def survey_of(folder: Path, records: list[dict[str, Any]]) -> Survey:
    data = write_lines(folder / "data.jsonl", records)
    source = DatasetSource(uri=f"file://{data}", format=DatasetFormat.PREFERENCE)
    return survey(data_parts(source, folder))


ASK, GOOD, BAD = "Say hello.", "Hello!", "What do you want?"
USER = {"role": "user", "content": ASK}
YES, NO = ({"role": "assistant", "content": text} for text in (GOOD, BAD))


@pytest.mark.parametrize(
    "record",
    [
        pytest.param({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, id="turns"),
        pytest.param({"prompt": ASK, "chosen": [YES], "rejected": [NO]}, id="prompt as text"),
        pytest.param({"prompt": ASK, "chosen": YES, "rejected": NO}, id="sides as one turn"),
        pytest.param({"chosen": [USER, YES], "rejected": [USER, NO]}, id="prompt in both sides"),
        pytest.param({"prompt": ASK, "chosen": [USER, YES], "rejected": [USER, NO]}, id="prompt thrice"),
    ],
)
def test_the_better_side_is_an_example_and_the_worse_its_other(record: dict[str, Any]) -> None:
    found = example_of(record)

    assert isinstance(found, Conversation)
    assert [turn.content for turn in found.turns] == [ASK, GOOD]
    other = other_side(found)
    assert isinstance(other, Conversation)
    assert [turn.content for turn in other.turns] == [ASK, BAD]
    assert other_side(other) is None


def test_texts_are_joined_as_they_are() -> None:
    found = example_of({"prompt": "2 plus 2", "chosen": " 4", "rejected": " 5"})

    assert found == PromptCompletion("2 plus 2", " 4", rejected=" 5")
    assert other_side(found) == PromptCompletion("2 plus 2", " 5")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "are equal: there is nothing to prefer"),
        ({"prompt": [USER], "chosen": [YES], "rejected": [YES]}, "are equal: there is nothing to prefer"),
        ({"chosen": "b", "rejected": "c"}, '"prompt" is null'),
        ({"prompt": "a", "chosen": "b", "rejected": [NO]}, "must both be strings, or both lists"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, '"rejected" is empty'),
        ({"prompt": 3, "chosen": [YES], "rejected": [NO]}, '"prompt" must be a string or a list'),
        ({"prompt": [USER], "chosen": [YES], "rejected": [USER]}, "turns must alternate"),
        (
            {"chosen": [USER, YES], "rejected": [{"role": "user", "content": "Other"}, NO]},
            "differ before their last turn",
        ),
        ({"prompt": "a", "chosen": "b"}, 'has no "rejected"'),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, "is of turns, but earlier examples are of texts"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}

    with pytest.raises(TrainerError, match=f"line 2: .*{message}") as failure:
        survey_of(tmp_path, [good, record])
    assert failure.value.code is ExitCode.DATASET_INVALID


def test_both_sides_are_encoded_with_their_stop_token() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    encoder = Encoder(tokenizer, shape=DatasetFormat.PREFERENCE, loss=LossOn.COMPLETION, chat=True)
    record = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}

    batch = with_other_sides([("line 1", example_of(record))])
    (found,) = paired(encoder.encode(batch), 1)

    texts = [
        tokenizer.decode([token for token in labels if token != IGNORED])
        for labels in (found.labels, found.rejected_labels)
    ]
    assert texts == [f"{GOOD}<|im_end|>", f"{BAD}<|im_end|>"]
    assert found.input_ids[:5] == found.rejected_ids[:5]


def test_pairs_are_cut_and_those_that_no_longer_differ_are_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append(
        [
            Encoded([1, 2, 3], [-100, 2, 3], rejected_ids=[1, 7, 8, 9, 9], rejected_labels=[-100, 7, 8, 9, 9]),
            Encoded([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], rejected_ids=[1, 2, 3, 4, 6], rejected_labels=[1, 2, 3, 4, 6]),
            Encoded([1, 2], [-100, 2], rejected_ids=[1, 2, 3, 4, 5], rejected_labels=[-100] * 4 + [5]),
        ]
    )

    written, cut = write_shards(spool.close(), tmp_path, part="train", longest=4)

    assert pq.read_table(tmp_path / "train-00000.parquet").to_pydict() == {
        "input_ids": [[1, 2, 3]],
        "labels": [[-100, 2, 3]],
        "rejected_ids": [[1, 7, 8, 9]],
        "rejected_labels": [[-100, 7, 8, 9]],
    }
    assert cut == Cut(rows=1, tokens=7, loss_tokens=5, truncated=3, dropped=2)
    assert written[0].tokens == 7


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ({"objective": "DPO"}, DatasetFormat.MESSAGES, "objective is DPO, but the data has the format messages"),
        ({"objective": "KTO"}, DatasetFormat.TEXT, "objective is KTO, but the data has the format text: give pairs"),
        ({}, DatasetFormat.PREFERENCE, "objective is SFT, but the data has the format preference: set objective: DPO"),
        (
            {"objective": "ORPO", "hyperparameters": {"loss": "all"}},
            DatasetFormat.PREFERENCE,
            "loss is all, but preferences compare last answers",
        ),
    ],
)
def test_objective_and_data_must_fit(spec: dict[str, Any], shape: DatasetFormat, message: str) -> None:
    needed = {"method": "LoRA", "model": {"uri": "m"}, "dataset": {"uri": "d"}, "output": {"uri": "o"}}

    with pytest.raises(ResolveError, match=message):
        choose_loss(TuningSpec.model_validate({**needed, **spec}), shape)
