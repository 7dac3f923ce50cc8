"""Samples: answers to the same prompts every so many steps, kept with their step, over all attempts of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.samples import Sample, from_lines, to_lines
from finetune_operator.cli.__main__ import main
from finetune_trainer.errors import TrainerError
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.storage.local import FolderStore
from finetune_trainer.training import samples as samples_module
from tests.support.training import THIRD_PARTY, Outcome, forget_preemption, make_case, stopped, train

pytestmark = THIRD_PARTY

EVERY_THREE: dict[str, Any] = {"total_steps": 8, "sample_every_steps": 3, "checkpoint_every_steps": 100}
SHORT = {"evaluation": {"maxNewTokens": 4}}


def kept(run: Path | Outcome) -> list[Sample]:
    folder = run.run if isinstance(run, Outcome) else run
    return from_lines((folder / paths.SAMPLES).read_text())


def test_held_out_prompts_are_asked_from_the_base_model_to_the_last_step(tmp_path: Path) -> None:
    outcome = train(make_case(tmp_path, spec=SHORT, **EVERY_THREE))

    found = kept(outcome)
    assert [sample.step for sample in found] == [step for step in (0, 3, 6, 8) for _ in range(samples_module.HELD_OUT)]
    assert len({sample.expected for sample in found}) > 1
    assert {sample.answer for sample in found if sample.step == 0} != {s.answer for s in found if s.step == 8}
    report = (outcome.run / paths.REPORT).read_text()
    assert "Samples while training" in report
    assert '<td class="muted">expected</td>' in report


def test_the_specs_prompts_are_asked_in_their_place(tmp_path: Path) -> None:
    spec = {"evaluation": {"maxNewTokens": 4, "samples": {"prompts": ["1 plus 2", "3 plus 4"]}}}

    found = kept(train(make_case(tmp_path, spec=spec, **EVERY_THREE)))

    prompts = [sample.prompt for sample in found if sample.step == 3]
    assert prompts == [[{"role": "user", "content": "1 plus 2"}], [{"role": "user", "content": "3 plus 4"}]]
    assert {sample.expected for sample in found} == {None}


def test_a_resumed_run_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(make_case(tmp_path / "undisturbed", spec=SHORT, **EVERY_THREE))
    case = make_case(tmp_path / "disturbed", spec=SHORT, **EVERY_THREE)

    # The signal after step 2 ends the run at step 3, whose samples the next attempt takes at its start; the one after
    # step 6 ends it at step 7.
    stopped(case, after=2, monkeypatch=monkeypatch)
    stopped(case.attempt(2), after=6, monkeypatch=monkeypatch)
    resumed = train(case.attempt(3))

    assert kept(resumed) == kept(undisturbed)
    assert resumed.losses == undisturbed.losses


def test_samples_of_steps_that_were_lost_are_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, spec=SHORT, **EVERY_THREE)
    stopped(case, after=4, monkeypatch=monkeypatch)
    file = case.run / paths.samples_file(1)
    lost = Sample(step=6, prompt="lost", answer="by a crash before the next checkpoint")
    file.write_text(file.read_text() + to_lines([lost]))

    found = kept(train(case.attempt(2)))

    assert [sample.step for sample in found if sample.step == 6] == [6] * samples_module.HELD_OUT
    assert lost not in found


def test_a_signal_during_the_answers_costs_the_step_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(make_case(tmp_path / "undisturbed", spec=SHORT, **EVERY_THREE))
    case = make_case(tmp_path / "disturbed", spec=SHORT, **EVERY_THREE)

    calls: list[int] = []

    def told_to_stop(*_: Any, **__: Any) -> list[str]:
        calls.append(1)
        if len(calls) == 2:
            PREEMPTION.request()
            PREEMPTION.check()
        return ["?"] * samples_module.HELD_OUT

    with monkeypatch.context() as patch:
        patch.setattr(samples_module, "answers", told_to_stop)
        with pytest.raises(TrainerError) as failure:
            train(case)
    assert failure.value.code is ExitCode.PREEMPTED
    forget_preemption()

    resumed = train(case.attempt(2))

    assert resumed.result.resumed_from_step == 3
    assert [sample.step for sample in kept(resumed)] == [sample.step for sample in kept(undisturbed)]


def test_training_goes_on_without_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = FolderStore.write

    def away(self: FolderStore, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        if f"/{paths.SAMPLES_DIR}/" in uri:
            raise TrainerError(ExitCode.STORAGE_UNAVAILABLE, "The endpoint does not answer.")
        write(self, uri, data, only_if_absent=only_if_absent)

    monkeypatch.setattr(FolderStore, "write", away)

    outcome = train(make_case(tmp_path, spec=SHORT, **EVERY_THREE))

    assert len(outcome.losses) == 8
    assert caplog.text.count("samples are not stored") == 1
    assert {sample.step for sample in kept(outcome)} == {0, 3, 6, 8}


# The command.

SAMPLES = [
    Sample(step=0, prompt=[{"role": "user", "content": "1 plus 2"}], expected="3", answer="plus plus"),
    Sample(step=5, prompt=[{"role": "user", "content": "1 plus 2"}], expected="3", answer="3"),
]


def manifest(folder: Path, output: str) -> str:
    path = folder / "job.yaml"
    path.write_text(
        f"""apiVersion: finetuning.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: adder}}
spec:
  method: LoRA
  model: {{uri: hf://a/b}}
  dataset: {{uri: s3://data/sums.jsonl}}
  output: {{uri: {output}}}
"""
    )
    return str(path)


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_the_command_shows_the_newest_attempt_of_the_newest_run(
    tmp_path: Path, scheme: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetune_contract.run_config import Use
    from finetune_trainer.storage import open_store

    output = f"file://{tmp_path}/out" if scheme == "file" else request.getfixturevalue("bucket")
    store = open_store(output, Use.OUTPUT)
    old = [sample.model_copy(update={"answer": "of an older attempt"}) for sample in SAMPLES]
    store.write(f"{output}/run-1/{paths.SAMPLES}", to_lines(old).encode())
    store.write(f"{output}/run-2/{paths.samples_file(1)}", to_lines(old).encode())
    store.write(f"{output}/run-2/{paths.samples_file(2)}", to_lines(SAMPLES).encode())

    assert main(["samples", manifest(tmp_path, output)]) == 0
    assert capsys.readouterr().out == (
        "prompt    1 plus 2\nexpected  3\nbase      plus plus\nstep 5    3\n\n"
    )  # fmt: skip
    assert main(["samples", f"{output}/run-2", "--step", "5"]) == 0
    assert "plus plus" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["{file}"], 1, "there is no run at", id="no run yet"),
        pytest.param(["{file}", "--run", "3"], 1, "no samples at", id="nothing kept"),
        pytest.param(["{folder}/other.yaml"], 2, "no such file", id="no file"),
        pytest.param(["file://{folder}/kept", "--step", "7"], 1, "there are those of 0, 5", id="no such step"),
    ],
)
def test_the_command_says_what_is_missing(
    tmp_path: Path, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / paths.SAMPLES).write_text(to_lines(SAMPLES))
    file = manifest(tmp_path, f"file://{tmp_path}/out")

    assert main(["samples", *(text.format(file=file, folder=tmp_path) for text in arguments)]) == code

    assert says in capsys.readouterr().err
