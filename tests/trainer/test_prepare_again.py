"""A later run of a job takes over what an earlier one prepared, if data and tokenizer are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer import prepare
from finetune_trainer.prepare import run_prepare
from finetune_trainer.storage import open_store
from tests.support.datasets import chats, write_lines
from tests.support.models import tiny_llama
from tests.support.preparing import UID, machine, run_config

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file://{tiny_llama(tmp_path_factory.mktemp('model'))}"


class Runs:
    """The runs of one job in one folder."""

    def __init__(self, folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._model = folder, model
        self.read = 0
        """How often the data were read."""
        monkeypatch.setattr(prepare, "read_data", self._counting(prepare.read_data))
        self.write(chats(300))

    def _counting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            self.read += 1
            return read(*given, **named)

        return counted

    def write(self, examples: list[Any]) -> None:
        """Replace the data."""
        write_lines(self.folder / "data.jsonl", examples)

    def config(self, run: int, *, uid: str = UID, dataset: Settings | None = None, **spec: Any) -> RunConfig:
        place = f"file://{self.folder}"
        spec["dataset"] = {"uri": f"{place}/data.jsonl", **(dataset or {})}
        config = run_config(place, model=self._model, uid=uid, **spec)
        return config.model_copy(update={"job": config.job.model_copy(update={"run": run}), "config_hash": str(spec)})

    def prepare(self, run: int, **spec: Any) -> Prepared:
        """Prepare a run, and return what train reads."""
        config = self.config(run, **spec)
        run_prepare(config, machine(self.folder))
        content = open_store(config.run_uri, Use.OUTPUT).read(f"{config.run_uri}/prepared/prepared.json")
        return Prepared.model_validate_json(content)


@pytest.fixture
def runs(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, model, monkeypatch)


def test_the_same_job_again_prepares_nothing_and_stands_by_itself(runs: Runs) -> None:
    first, again = runs.prepare(1), runs.prepare(2)
    assert (again, runs.read) == (first, 1)
    folders = [runs.folder / "out" / f"run-{run}" / "prepared" for run in (1, 2)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]


def test_another_learning_rate_takes_the_data_over_with_its_own_warnings(runs: Runs) -> None:
    first = runs.prepare(1)
    again = runs.prepare(2, hyperparameters={"learningRate": 0.1, "epochs": 9})
    assert runs.read == 1
    assert again.shards == first.shards
    assert again.resolved.learning_rate == 0.1
    assert again.resolved.total_steps == 3 * first.resolved.total_steps
    assert [("0.1" in warning or "9" in warning) for warning in again.dataset.warnings] == [True, True]
    assert first.dataset.warnings == ()


@pytest.mark.parametrize(
    "spec",
    [
        {"hyperparameters": {"maxSequenceLength": 64}},
        {"hyperparameters": {"loss": "all"}},
        {"dataset": {"systemPrompt": "Be brief."}},
        {"dataset": {"validation": {"fraction": 0.3}}},
        {"evaluation": {"maxExamples": 5}},
        {"uid": "of-another-job"},
    ],
    ids=["length", "loss", "system prompt", "split", "held-out answers", "another job"],
)
def test_what_changes_the_shards_makes_them_anew(runs: Runs, spec: Settings) -> None:
    runs.prepare(1)
    runs.prepare(2, **spec)
    assert runs.read == 2


def test_data_that_changed_under_the_same_name_are_read(runs: Runs) -> None:
    first = runs.prepare(1)
    runs.write(chats(301))
    again = runs.prepare(2)
    assert (again.dataset.examples, first.dataset.examples) == (301, 300)


def test_a_shard_that_was_damaged_since_is_not_taken(runs: Runs) -> None:
    first = runs.prepare(1)
    (runs.folder / "out" / "run-1" / first.shards[0].path).write_bytes(b"damaged")
    assert runs.prepare(2).shards == first.shards
    assert runs.read == 2


def test_an_earlier_run_without_a_record_is_no_obstacle(runs: Runs) -> None:
    runs.prepare(1)
    (runs.folder / "out" / "run-1" / "prepared" / "data.json").unlink()
    runs.prepare(2)
    runs.prepare(3)
    assert runs.read == 2
