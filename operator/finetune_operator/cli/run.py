"""`finetune run`: the manifest of a cluster on this machine. Same checks, same trainer, same outputs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_contract import paths
from finetune_contract.outcome import PrepareResult, TerminationMessage, TrainResult
from finetune_contract.run_config import RunConfig
from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.cli.check import is_ours, problems_of
from finetune_operator.cli.documents import ReadError, read_documents
from finetune_operator.cli.formats import add_output_or_format, chosen, is_json, show_json
from finetune_operator.cli.local_run import LocalRun, default_folder, local_device
from finetune_operator.cli.results import before_and_after, comparison, outputs, remarks
from finetune_operator.cli.stages import run_stage, was_stopped
from finetune_operator.cli.storage import StorageError, local_uri
from finetune_operator.cli.validate import INVALID
from finetune_operator.cli.verify import human_bytes, verify

_EPILOG = """\
examples:
  finetune run job.yaml                                   s3:// and hf:// with the credentials of your environment
  finetune run job.yaml --output ./out                    try a cluster's job here, results in a folder
  finetune run job.yaml --model ./model --dataset data.jsonl --output ./out
  finetune run job.yaml --claims /mnt                     pvc://claim/path is read at /mnt/claim/path
  finetune run job.yaml -o json                           the last word as JSON; what people read is on standard error

In a manifest a local path is file:///absolute/path; --model, --dataset and --output take relative ones, too.
Credentials are read from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, HF_TOKEN, with
the prefix MODEL_, DATASET_ or OUTPUT_ where they differ; OPENAI_API_KEY for a judge); secretRef, scheduling,
podTemplate and profile are a cluster's.

Ctrl-C checkpoints and stops; the same command goes on from there. exit code: 0, 2 for a bad manifest, or the
trainer's (finetune_contract/exit_codes.py).
"""
_WORDS = ("model", "dataset", "output")


class _StoppedError(Exception):
    """A stage that did not complete; carries its last word."""

    def __init__(self, message: TerminationMessage) -> None:
        super().__init__(message.message)
        self.message = message


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "run",
        help="run a FineTuneJob on this machine, without a cluster",
        description="Run a FineTuneJob on this machine: prepare, fetch and train as in a cluster; check the outputs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="manifest of one FineTuneJob, or - for standard input")
    for word in ("model", "dataset"):
        parser.add_argument(f"--{word}", metavar="URI", help=f"in place of spec.{word}.uri: a path or a URI")
    add_output_or_format(parser)
    parser.add_argument("--claims", type=Path, metavar="FOLDER", help="folder of PersistentVolumeClaims, for pvc://")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="train in N processes on the CPU, as on N GPUs (default: 1)"
    )
    parser.add_argument(
        "--deepspeed-config", type=Path, metavar="FILE", help="what deepspeed.configMapRef names in a cluster"
    )
    parser.add_argument("--work-dir", type=Path, metavar="FOLDER", help="scratch space (default: in the user's cache)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the manifest, run the stages, show and verify the results."""
    if not is_json(chosen(arguments)):
        return _run(arguments)[0]
    with redirect_stdout(sys.stderr):
        code, last_word = _run(arguments)
    show_json(last_word)
    return code


def _run(arguments: argparse.Namespace) -> tuple[int, dict[str, object]]:
    """Return the exit code, and the last word about the run: the trainer's own, or what stopped it before."""
    job = _read_job(arguments)
    problems = [job] if isinstance(job, str) else list(_problems(job, arguments))
    if isinstance(job, str) or problems:
        print(*(f"{arguments.file}: {problem}" for problem in problems), sep="\n", file=sys.stderr)
        return INVALID, {"exitCode": INVALID, "problems": problems}
    name, spec = job["metadata"]["name"], job["spec"]
    folder = arguments.work_dir or default_folder(name, spec["output"]["uri"])
    local = LocalRun(name=name, spec=spec, folder=folder.absolute(), claims=arguments.claims)
    if arguments.claims:  # the results are read here as well, to be shown and verified
        os.environ[paths.ENV_CLAIMS] = str(arguments.claims.absolute())
    if arguments.deepspeed_config:
        os.environ[paths.ENV_DEEPSPEED_CONFIG] = arguments.deepspeed_config.read_text(encoding="utf-8")
    try:
        return 0, _train(local, processes=arguments.processes)
    except _StoppedError as stopped:
        return _explain(stopped.message, arguments.file), stopped.message.to_wire()
    except StorageError as error:
        print(f"finetune run: the outputs cannot be checked: {error}", file=sys.stderr)
        return 1, {"exitCode": 1, "problems": [str(error)]}


def _read_job(arguments: argparse.Namespace) -> dict[str, Any] | str:
    """Return the file's one job with the overrides of the command line, or what is wrong with the file."""
    try:
        values = [document.value for document in read_documents(arguments.file)]
    except ReadError as error:
        return str(error)
    jobs = [value for value in values if is_ours(value) and not _is_profile(value)]
    if len(jobs) != 1:
        return f"has {len(jobs)} FineTuneJobs: `finetune run` takes a file with one"
    return _overridden(jobs[0], arguments)


def _is_profile(value: Any) -> bool:
    return isinstance(value, dict) and value.get("kind") == c.PROFILE_KIND


def _overridden(job: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    spec = job.get("spec") if isinstance(job, dict) else None
    if not isinstance(spec, dict):
        return job
    given = {word: local_uri(text) for word in _WORDS if (text := getattr(arguments, word))}
    changed = {word: {**_without_sources(spec.get(word, {})), "uri": uri} for word, uri in given.items()}
    return {**job, "spec": {**spec, **changed}}


def _without_sources(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "sources"}


def _problems(job: dict[str, Any], arguments: argparse.Namespace) -> Iterator[str]:
    found = problems_of(job, in_cluster=False)
    yield from map(str, found)
    if found:
        return
    if "name" not in job["metadata"]:
        yield "metadata.name: is missing: a second run finds its work by it"
    spec = FineTuneJobSpec.model_validate(job["spec"])
    uris = {"model": (spec.model.uri,), "dataset": spec.dataset.uris, "output": (spec.output.uri,)}
    for word in _WORDS:
        if any(uri.startswith("pvc://") for uri in uris[word]) and not arguments.claims:
            yield f"spec.{word}.uri: pvc:// needs --claims FOLDER, in which the claim is a folder of its name"
    if arguments.deepspeed_config and not arguments.deepspeed_config.is_file():
        yield f"--deepspeed-config {arguments.deepspeed_config}: no such file"
    if arguments.processes is not None and arguments.processes < 1:
        yield f"--processes is {arguments.processes}: at least 1"
    if not find_spec("torch"):
        yield "the trainer is not installed here: pip install 'finetune-operator[trainer]'"


def _train(local: LocalRun, *, processes: int | None) -> dict[str, object]:
    """Run all stages; return the last word of the last one. Raises _StoppedError, StorageError."""
    spec = FineTuneJobSpec.model_validate(local.spec)
    device, note = local_device(spec, processes=processes)
    for text in (note, spec.profile and f"profile {spec.profile} is a cluster's: its defaults do not apply here"):
        if text:
            print(f"note: {text}")
    config = local.config(device)
    print(f"{local.name}: run {config.job.run}, attempt {config.job.attempt}; working in {local.folder}", flush=True)
    prepared = _stage("prepare", local, config)
    if prepared.prepared:
        print(*_prepared_lines(prepared.prepared), sep="\n", flush=True)
    if prepared.trained:  # those of an earlier run (output.ifExists: Adopt)
        config, trained = config.of_run(prepared.trained.adopted_run or 1), prepared
    else:
        config = config.model_copy(update={"prepared_sha256": prepared.sha256})
        _stage("fetch", local, config)
        trained = _stage("train", local, config)
    if trained.trained:
        _show(config, trained.trained)
    if trained.exit_code:  # a gate failed: the results are there all the same
        raise _StoppedError(trained)
    return {"uri": config.run_uri, **trained.to_wire()}


def _stage(stage: Any, local: LocalRun, config: RunConfig) -> TerminationMessage:
    config_file, message_file = local.folder / "config.json", local.folder / "termination-log"
    config_file.write_text(config.to_json(), encoding="utf-8")
    environment = local.environment(config_file, message_file)
    message = run_stage(stage, environment=environment, message_file=message_file)
    if message.exit_code and not message.trained:
        raise _StoppedError(message)
    return message


def _prepared_lines(prepared: PrepareResult) -> Iterator[str]:
    data, memory = prepared.dataset, prepared.estimate
    yield (
        f"data      {data.examples} examples ({data.format}): {data.train_examples} to train on, "
        f"{data.validation_examples} held out, {data.train_tokens} tokens"
    )
    chosen = prepared.resolved
    yield (
        f"plan      {chosen.total_steps} steps of {chosen.batch_size} examples, at most {chosen.max_sequence_length} "
        f"tokens, learning rate {chosen.learning_rate:g}, {chosen.precision}"
    )
    yield f"memory    about {human_bytes(memory.per_gpu_bytes)}"


def _show(config: RunConfig, trained: TrainResult) -> None:
    """Print what came out, and compare every output with the manifest."""
    print()
    if trained.evaluation:
        print(*comparison(trained.evaluation), "", sep="\n")
    print(*remarks(trained.training), sep="\n", end="")
    print(*before_and_after(config.run_uri), sep="\n")
    verified = verify(config.run_uri)
    print(*outputs(config.run_uri, verified.manifest), sep="\n")
    if trained.hub:
        print(f"{'hub':<10}{trained.hub.repo}, commit {trained.hub.commit}")
    for warning in trained.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if verified.problems:
        raise StorageError("; ".join(verified.problems))
    print(f"verified: {len(verified.manifest.files)} files, {human_bytes(verified.bytes)}, all as in the manifest")


def _explain(message: TerminationMessage, file: str) -> int:
    """Say in a sentence why the run ended, and what to do."""
    print(f"\n{message.stage}: {message.reason}: {message.message}", file=sys.stderr)
    if was_stopped(message):
        print(f"`finetune run {file}` goes on from the last checkpoint", file=sys.stderr)
    return message.exit_code
