"""Several sources, a given validation set, a sample: what becomes of each example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_contract.dataset_spec import DatasetSource
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.parts import Part, data_parts, digest_of_parts
from finetune_trainer.data.plan import HELD_OUT, LEFT_OUT, Plan, choose_plan
from finetune_trainer.data.survey import examples, survey
from finetune_trainer.errors import TrainerError
from tests.support.datasets import chats, write_lines


def pairs(count: int, *, start: int = 0, answer: str = "answer") -> list[dict[str, str]]:
    return [{"prompt": f"question {n}", "completion": f"{answer} {n}"} for n in range(start, start + count)]


def source(folder: Path, files: dict[str, Sequence[Any]], **settings: Any) -> DatasetSource:
    """Write files and return a data set of them: `sources` and `validation` name files."""
    for name, records in files.items():
        write_lines(folder / name, records)
    if "sources" in settings:
        settings["sources"] = [{**one, "uri": f"file://{folder}/{one['uri']}"} for one in settings["sources"]]
    else:
        settings["uri"] = f"file://{folder}/{next(iter(files))}"
    if "validation" in settings:
        settings["validation"] = {"uri": f"file://{folder}/{settings['validation']}"}
    return DatasetSource.model_validate(settings)


def planned(dataset: DatasetSource, folder: Path) -> tuple[list[Part], Plan]:
    parts = data_parts(dataset, folder / "fetched")
    seen = survey(parts)
    return parts, choose_plan(seen, parts, fraction=dataset.validation.fraction, max_samples=dataset.max_samples)


def test_a_weight_is_how_often_an_example_is_trained_on(tmp_path: Path) -> None:
    files = {"a": pairs(400), "b": pairs(400, start=400), "c": pairs(400, start=800)}
    weights: list[dict[str, Any]] = [{"uri": "a"}, {"uri": "b", "weight": 2.5}, {"uri": "c", "weight": 0.25}]
    parts, plan = planned(source(tmp_path, files, sources=weights), tmp_path)
    uses = [plan.uses[at : at + 400] for at in (0, 400, 800)]
    trained = [[use for use in part if use != HELD_OUT] for part in uses]
    assert [set(part) for part in trained] == [{1}, {2, 3}, {0, 1}]
    means = [sum(part) / len(part) for part in trained]
    assert means == pytest.approx([1, 2.5, 0.25], abs=0.1)
    assert all(20 < part.count(HELD_OUT) < 60 for part in uses)
    assert planned(source(tmp_path, files, sources=weights), tmp_path)[1] == plan
    assert len(list(examples(parts))) == 1200


def test_a_source_changes_nothing_for_the_examples_of_another(tmp_path: Path) -> None:
    files = {"a": pairs(300), "b": pairs(300, start=300)}
    both = planned(source(tmp_path, files, sources=[{"uri": "a", "weight": 0.5}, {"uri": "b"}]), tmp_path)[1]
    alone = planned(source(tmp_path, files, sources=[{"uri": "a", "weight": 0.5}]), tmp_path)[1]
    assert both.uses[:300] == alone.uses


def test_conversations_of_different_formats_mix(tmp_path: Path) -> None:
    instructions = [{"instruction": f"Add one to {n}.", "output": f"{n + 1}"} for n in range(20)]
    dataset = source(
        tmp_path, {"a": chats(20), "b": instructions}, sources=[{"uri": "a"}, {"uri": "b", "format": "instruction"}]
    )
    seen = survey(data_parts(dataset, tmp_path))
    assert (seen.format, seen.sizes) == ("messages", [20, 20])


def test_other_formats_do_not_mix(tmp_path: Path) -> None:
    dataset = source(tmp_path, {"a": chats(2), "b": pairs(2)}, sources=[{"uri": "a"}, {"uri": "b"}])
    with pytest.raises(TrainerError) as caught:
        survey(data_parts(dataset, tmp_path))
    assert caught.value.code == ExitCode.DATASET_INVALID
    assert (
        "sources[1] b line 1: is promptCompletion, but sources[0] a line 1 of another source is messages"
        in caught.value.message
    )


def test_the_digest_covers_every_source_and_the_validation_set(tmp_path: Path) -> None:
    files = {"a": pairs(5), "b": pairs(5, start=5), "v": pairs(5, start=10)}

    def digest() -> str:
        dataset = source(tmp_path, files, sources=[{"uri": "a"}, {"uri": "b"}], validation="v")
        return digest_of_parts(data_parts(dataset, tmp_path / "fetched"))

    found = {digest()}
    for records in files.values():
        records.append({"prompt": "one", "completion": "more"})
        found.add(digest())
    assert len(found) == 4


def test_a_given_validation_set_is_held_out_and_its_prompts_are_not_trained_on(tmp_path: Path) -> None:
    leaked = [{"prompt": f"  QUESTION {n}\n", "completion": "another answer"} for n in (100, 101, 102)]
    files = {"train": [*pairs(50), *leaked], "validation": pairs(10, start=100)}
    _, plan = planned(source(tmp_path, files, validation="validation"), tmp_path)
    assert list(plan.uses) == [1] * 50 + [LEFT_OUT] * 3 + [HELD_OUT] * 10
    assert (plan.held_out, plan.leaked) == (10, 3)


def test_where_all_prompts_are_equal_answers_tell_what_has_leaked(tmp_path: Path) -> None:
    poems = [{"prompt": "Write a poem.", "completion": f"poem {n}"} for n in range(12)]
    _, plan = planned(source(tmp_path, {"t": poems[:10], "v": poems[9:]}, validation="v"), tmp_path)
    assert list(plan.uses) == [1] * 9 + [LEFT_OUT] + [HELD_OUT] * 3


def test_a_validation_set_that_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    dataset = source(tmp_path, {"train": pairs(5), "validation": pairs(9)}, validation="validation")
    with pytest.raises(TrainerError, match=r"All 5 training examples have a prompt that stands in dataset\.validation"):
        planned(dataset, tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"validation": "empty"}, "The data set has no examples: validation empty is empty."),
        (
            {"sources": [{"uri": "a"}, {"uri": "empty"}]},
            "The data set has no examples: sources[1] empty is empty.",
        ),
        ({"sources": [{"uri": "a"}, {"uri": "nothing"}]}, "Nothing lies at dataset.sources[1].uri file://"),
        ({"validation": "nothing"}, "Nothing lies at dataset.validation.uri file://"),
        ({"systemPrompt": "Be brief."}, "dataset.systemPrompt is for conversations, the data is promptCompletion"),
    ],
    ids=["empty validation", "empty source", "no source", "no validation", "system prompt"],
)
def test_what_is_wrong_with_a_source_names_its_field(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainerError) as caught:
        planned(source(tmp_path, {"a": pairs(5), "empty": []}, **settings), tmp_path)
    assert says in caught.value.message


def test_weights_that_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"With these weights of dataset\.sources no example is trained on"):
        planned(source(tmp_path, {"a": pairs(3)}, sources=[{"uri": "a", "weight": 1e-6}]), tmp_path)


def test_a_sample_is_fair_and_keeps_its_examples_when_it_grows(tmp_path: Path) -> None:
    files = {"a": pairs(600), "v": pairs(50, start=1000)}

    def used(**settings: Any) -> set[int]:
        uses = planned(source(tmp_path, files, **settings), tmp_path)[1].uses
        return {number for number, use in enumerate(uses) if use != LEFT_OUT}

    assert (len(used(maxSamples=100)), len(used(maxSamples=1000))) == (100, 600)
    assert used(maxSamples=100) < used(maxSamples=200)
    assert 20 < sum(number < 300 for number in used(maxSamples=100)) < 80
    assert len(used(maxSamples=100, validation="v")) == 150
