"""One stage from its configuration to its last word: what every stage has in common.

Whatever happens inside, the container exits with a code of the table, and the termination message says in one
sentence what the user has to know. A stack trace is for errors that nobody foresaw.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import MAX_LOCAL_BYTES, MAX_MESSAGE_BYTES, Stage, TerminationMessage, TrainResult
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.gates import sentence
from finetune_trainer.failures import explain
from finetune_trainer.logs import log, logging_to_stderr
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.tracing import traced

COMPLETED = "Completed"
_LOG_TAIL = 500
_MESSAGE = 1500


def run_stage(stage: Stage, env: Environment, *, log_level: str = "INFO") -> int:
    """Run a stage; return its exit code after writing its termination message."""
    with logging_to_stderr(log_level) as tail:
        try:
            PREEMPTION.check()
            config = load_config(env.config)
            with traced(stage, config):
                message = _perform(stage, config, env)
            if message.exit_code:
                log.error("%s: %s: %s", stage, message.reason, message.message)
            else:
                log.info("%s: completed", stage)
        except Exception as error:
            # The border where every exception becomes an exit code; from here on no signal changes it.
            with PREEMPTION.deferred():
                failure = explain(error)
                _log_failure(stage, failure, error)
                message = _failed(stage, failure, log_tail=tail.text(_LOG_TAIL))
        with PREEMPTION.deferred():
            _write(env.termination_log, message)
        return message.exit_code


def load_config(path: Path) -> RunConfig:
    """Read the run configuration. Raises CONFIG_INVALID, naming the field."""
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrainerError(
            ExitCode.CONFIG_INVALID, f"No run configuration at {path}: {error.strerror or error}."
        ) from error
    except ValidationError as error:
        raise TrainerError(ExitCode.CONFIG_INVALID, f"Run configuration: {_first_problem(error)}") from error


def _perform(stage: Stage, config: RunConfig, env: Environment) -> TerminationMessage:
    log.info("%s: %s/%s run %d attempt %d", stage, *_names(config), config.job.run, config.job.attempt)
    match stage:
        case "prepare":
            return _prepared(config, env)
        case "fetch":
            from finetune_trainer.fetch import fetch_model

            fetched = fetch_model(config, env, weights=True)
            log.info("model revision %s", fetched.revision)
            return TerminationMessage(stage=stage, exit_code=0, reason=COMPLETED)
        case "train":
            from finetune_trainer.parallel.distributed import join
            from finetune_trainer.train import run_train

            join()
            done = run_train(config, env)
            if done is None:  # not the first of several processes
                return TerminationMessage(stage=stage, exit_code=0, reason=COMPLETED)
            return _trained(stage, config, *done)
        case "check":
            from finetune_trainer.check import run_check

            return TerminationMessage(stage=stage, exit_code=0, reason=COMPLETED, checked=run_check(config, env))
        case "collect":
            from finetune_trainer.collect import run_collect

            trained, sha256 = run_collect(config)
            return _trained(stage, config, trained, sha256)


def _prepared(config: RunConfig, env: Environment) -> TerminationMessage:
    """Prepare, unless an earlier run has left what is wanted."""
    from finetune_trainer.outputs.adopt import adopted_run
    from finetune_trainer.storage import open_store

    if found := adopted_run(config, open_store(config.run_uri, Use.OUTPUT), work=env.work):
        return _trained("prepare", config, *found)
    from finetune_trainer.prepare import run_prepare

    prepared, sha256 = run_prepare(config, env)
    return TerminationMessage(stage="prepare", exit_code=0, reason=COMPLETED, sha256=sha256, prepared=prepared)


def _trained(stage: Stage, config: RunConfig, trained: TrainResult, sha256: str) -> TerminationMessage:
    """Return the last word on a run whose outputs are all there: below a gate it has failed, with its result."""
    failed = trained.evaluation.failed_gates if trained.evaluation else ()
    if not failed:
        return TerminationMessage(stage=stage, exit_code=0, reason=COMPLETED, sha256=sha256, trained=trained)
    theirs = config.of_run(trained.adopted_run or config.job.run)
    failure = TrainerError(ExitCode.GATE_FAILED, sentence(failed, theirs.run_uri))
    message = _failed(stage, failure, log_tail="")
    return message.model_copy(update={"sha256": sha256, "trained": trained})


def _names(config: RunConfig) -> tuple[str, str]:
    return config.job.namespace, config.job.name


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {first['msg']}{others}."


def _log_failure(stage: Stage, failure: TrainerError, error: BaseException) -> None:
    unforeseen = failure.code == ExitCode.INTERNAL_ERROR and not isinstance(error, TrainerError)
    log.error("%s: %s: %s", stage, failure.failure.reason, failure.message, exc_info=error if unforeseen else None)
    if not unforeseen:
        log.debug("%s", failure.failure.meaning, exc_info=error)


def _failed(stage: Stage, failure: TrainerError, *, log_tail: str) -> TerminationMessage:
    return TerminationMessage(
        stage=stage,
        exit_code=failure.code,
        reason=failure.failure.reason,
        message=failure.message[:_MESSAGE],
        log_tail=log_tail,
    )


def _write(path: Path, message: TerminationMessage) -> None:
    try:
        limit = MAX_LOCAL_BYTES if message.stage == "check" else MAX_MESSAGE_BYTES
        path.write_text(message.encode(limit), encoding="utf-8")
    except OSError as error:
        # On a user's own machine there is no kubelet that would read it.
        log.debug("no termination message at %s: %s", path, error.strerror)
