"""The trainer's half of the exit code contract: each row of the table, from the error to the termination message.

The operator's half maps the same table to conditions.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import BY_CODE, FAILURES, ExitCode, Failure
from finetune_contract.outcome import (
    MAX_MESSAGE_BYTES,
    Manifest,
    TerminationMessage,
    TrainingSummary,
    TrainResult,
    Usage,
)
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.failures import explain
from finetune_trainer.stage import run_stage
from tests.support.prepared import Case, make_config, make_environment
from tests.support.training import THIRD_PARTY, make_case

pytestmark = THIRD_PARTY


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    env = make_environment(tmp_path)
    env.config.write_text(make_config(output_uri=f"file://{tmp_path}/out", model_uri="file:///nowhere").to_json())
    return env


def last_word(env: Environment) -> TerminationMessage:
    text = env.termination_log.read_text(encoding="utf-8")
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    message = TerminationMessage.decode(text)
    assert message is not None
    return message


def prepare_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("finetune_trainer.prepare.run_prepare", fail)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.reason)
def test_every_row_of_the_table_reaches_the_termination_message(
    failure: Failure, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_raising(TrainerError(failure.code, "What is wrong, and what to do. " * 200), monkeypatch)

    code = run_stage("prepare", env)

    message = last_word(env)
    assert code == failure.code == message.exit_code
    assert (message.stage, message.reason) == ("prepare", failure.reason)
    assert message.message.startswith("What is wrong, and what to do.")


def test_the_table_has_a_row_for_every_code() -> None:
    assert set(BY_CODE) == set(ExitCode) - {ExitCode.SUCCESS}


class _SafetensorError(Exception):
    pass


def _wrapped(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("could not save") from cause
    except ValueError as outer:
        return outer


def _torch_out_of_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _cpu_out_of_memory() -> Exception:
    import torch

    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 50)
    return failure.value


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: OSError(errno.ENOSPC, "No space left on device"), ExitCode.DISK_FULL, id="ENOSPC"),
        pytest.param(
            lambda: _SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            ExitCode.DISK_FULL,
            id="safetensors on a full disk",
        ),
        pytest.param(lambda: _wrapped(OSError(errno.ENOSPC, "")), ExitCode.DISK_FULL, id="wrapped ENOSPC"),
        pytest.param(
            lambda: RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1375777472 vs 1375777364"),
            ExitCode.DISK_FULL,
            id="torch.save to a full disk, as seen on a GPU machine",
        ),
        pytest.param(MemoryError, ExitCode.OUT_OF_MEMORY, id="MemoryError"),
        pytest.param(_torch_out_of_memory, ExitCode.OUT_OF_MEMORY, id="torch on a GPU"),
        pytest.param(_cpu_out_of_memory, ExitCode.OUT_OF_MEMORY, id="torch on the CPU"),
        pytest.param(
            lambda: _wrapped(TrainerError(ExitCode.BUCKET_NOT_FOUND, "no bucket")),
            ExitCode.BUCKET_NOT_FOUND,
            id="a known failure inside a library's",
        ),
        pytest.param(lambda: KeyError("surprise"), ExitCode.INTERNAL_ERROR, id="anything else"),
    ],
)
def test_real_errors_are_recognised(make: Callable[[], Exception], expected: ExitCode) -> None:
    assert explain(make()).code is expected


def test_an_unforeseen_error_leaves_its_trace_in_the_log(
    env: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare_raising(KeyError("surprise"), monkeypatch)

    assert run_stage("prepare", env) == ExitCode.INTERNAL_ERROR
    assert "Traceback" in capfd.readouterr().err


def test_a_known_failure_is_a_sentence_without_a_trace(
    env: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare_raising(TrainerError(ExitCode.DATASET_NOT_FOUND, "Nothing at s3://a/b."), monkeypatch)

    assert run_stage("prepare", env) == ExitCode.DATASET_NOT_FOUND
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert error.endswith("ERROR prepare: DatasetNotFound: Nothing at s3://a/b.\n")


# What really happens, through the train stage.


def exit_code(case: Case) -> int:
    case.env.config.write_text(case.config.to_json())
    code = run_stage("train", case.env)
    message = last_word(case.env)
    assert message.exit_code == code
    return code


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    case = make_case(tmp_path, method="Full", total_steps=30, learning_rate=1.0, checkpoint_every_steps=100)
    weights = tmp_path / "model" / "model.safetensors"
    _spoil(weights)

    assert exit_code(case) == ExitCode.LOSS_NOT_FINITE


def test_a_shard_that_changed(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    shard = case.run / paths.PREPARED_DIR / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes() + b"!")

    assert exit_code(case) == ExitCode.PREPARED_DATA_CHANGED


@pytest.mark.parametrize("name", [paths.PREPARED, "prepared/train-00000.parquet", "prepared/held-out.jsonl"])
def test_prepared_data_that_went(tmp_path: Path, name: str) -> None:
    case = make_case(tmp_path)
    (case.run / name).unlink()

    assert exit_code(case) == ExitCode.PREPARED_DATA_CHANGED


def test_prepared_json_that_is_not_the_one_reported(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    path = case.run / paths.PREPARED
    path.write_text(path.read_text().replace('"totalSteps":6', '"totalSteps":7'))

    assert exit_code(case) == ExitCode.PREPARED_DATA_CHANGED


def test_the_output_of_another_job(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    manifest = Manifest(
        job_name="other",
        job_namespace="default",
        job_uid="other",
        run=1,
        config_hash="other",
        method="LoRA",
        base_model="",
        dataset="",
        created="2026-01-01T00:00:00+00:00",
        files=(),
        artifacts={},
    )
    (case.run / paths.MANIFEST).write_text(manifest.to_json())

    assert exit_code(case) == ExitCode.OUTPUT_EXISTS


def test_adapters_on_modules_that_the_model_does_not_have(tmp_path: Path) -> None:
    assert exit_code(make_case(tmp_path, spec={"lora": {"targetModules": ["no_such"]}})) == ExitCode.CONFIG_INVALID


def test_weights_that_are_damaged(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    assert exit_code(case) == ExitCode.MODEL_INVALID


def test_a_gpu_too_small_for_any_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise _torch_out_of_memory()

    monkeypatch.setattr("finetune_trainer.training.dryrun.dry_run", too_large)

    assert exit_code(make_case(tmp_path)) == ExitCode.OUT_OF_MEMORY


def test_a_disk_that_is_full_in_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finetune_trainer.parallel.zero.save_weights", full)

    assert exit_code(make_case(tmp_path)) == ExitCode.DISK_FULL


def _spoil(weights: Path) -> None:
    """Make the model's loss infinite."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(float("inf"))
    save_file(tensors, weights, metadata={"format": "pt"})


# The message itself.


def test_a_message_that_is_too_long_gives_up_the_log_first() -> None:
    message = TerminationMessage(
        stage="train", exit_code=50, reason="InternalError", message="m" * 1500, log_tail="l" * 500
    )

    short = json.loads(message.encode())

    assert len(message.encode().encode()) <= MAX_MESSAGE_BYTES
    assert len(short["message"]) == 1500
    assert len(short["logTail"]) == 200


def test_a_result_gives_up_its_warnings_before_what_the_operator_needs() -> None:
    summary = TrainingSummary(
        best_step=4, stopped_early="The held-out loss has not fallen.", warnings=("w" * 500,) * 20
    )
    message = TerminationMessage(
        stage="train",
        exit_code=0,
        reason="Completed",
        sha256="0" * 64,
        trained=TrainResult(step=7, training=summary, usage=Usage(trained_tokens=100)),
    )

    short = json.loads(message.encode())

    assert len(message.encode().encode()) <= MAX_MESSAGE_BYTES
    assert short["sha256"] == "0" * 64
    assert short["trained"]["training"]["stoppedEarly"] == "The held-out loss has not fallen."
    assert not short["trained"]["training"].get("warnings")
    assert short["trained"]["usage"]["trainedTokens"] == 100
