"""`finetune samples`: what the model answered while it was trained, step by step, during the run and after it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finetune_contract import paths
from finetune_contract.samples import Sample, from_lines, turn_text
from finetune_operator.cli.check import is_ours
from finetune_operator.cli.documents import ReadError, read_documents
from finetune_operator.cli.formats import add_output_or_format, chosen, is_json, show_json
from finetune_operator.cli.kubectl import KubectlError, add_cluster_arguments, kubectl_of
from finetune_operator.cli.results import labelled
from finetune_operator.cli.storage import StorageError, local_uri, names, read

_EPILOG = """\
examples:
  finetune samples job.yaml                               the newest run of the job
  finetune samples job.yaml --output ./out                as with `finetune run --output`
  finetune samples support-bot                            a job of the cluster
  finetune samples s3://models/support-bot/run-1 --step 40
  finetune samples job.yaml -o json                       a list of {"step", "prompt", "expected", "answer"}

Step 0 is the base model, the last step the tuned one.

S3 credentials are read from the environment, as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID.
exit code: 0, 1 if there are no samples, 2 for a bad manifest
"""
_RUN = re.compile(r"^run-(\d+)$")
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


class _UsageError(Exception):
    """What is wrong with the command line or the manifest."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "samples",
        help="show the model's answers while it is trained",
        description="Show what the model answered to the same prompts every so many steps (evaluation.samples).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "manifest of a FineTuneJob, name of one in the cluster, or the folder of a run as a URI"
    parser.add_argument("job", metavar="JOB", help=what)
    parser.add_argument("--step", type=int, metavar="N", help="only the answers of this step")
    parser.add_argument("--run", type=int, metavar="N", dest="number", help="number of the run (default: the newest)")
    add_output_or_format(parser)
    add_cluster_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Find the samples and show them."""
    try:
        uri = _run_uri(chosen(arguments))
        found = _samples(uri)
        wanted = [sample for sample in found if arguments.step in (None, sample.step)]
        if not wanted:
            raise StorageError(_nothing(uri, found))
    except (_UsageError, StorageError, KubectlError) as error:
        print(f"finetune samples: {error}", file=sys.stderr)
        return 2 if isinstance(error, _UsageError) else 1
    if is_json(arguments):
        show_json([sample.to_wire() for sample in wanted])
    else:
        print(*_lines(wanted), sep="\n")
    return 0


def _run_uri(arguments: argparse.Namespace) -> str:
    if "://" in arguments.job:
        return str(arguments.job)
    output = local_uri(arguments.output) if arguments.output else _output_of(arguments)
    if arguments.number:
        return paths.run_uri(output, arguments.number)
    numbers = [int(match[1]) for name in names(output) if (match := _RUN.match(name))]
    if not numbers:
        raise StorageError(f"there is no run at {output} yet")
    return paths.run_uri(output, max(numbers))


def _output_of(arguments: argparse.Namespace) -> str:
    file = str(arguments.job)
    if file != "-" and not Path(file).exists():
        if not _NAME.match(file):
            raise _UsageError(f"{file}: no such file: give the job's manifest or name, or its run's folder")
        return str(kubectl_of(arguments).job(file)["spec"]["output"]["uri"])
    try:
        values = [document.value for document in read_documents(file)]
        jobs: list[dict[str, Any]] = [value for value in values if is_ours(value) and "output" in value["spec"]]
    except (ReadError, KeyError, TypeError) as error:
        raise _UsageError(f"{file}: {error}") from error
    if len(jobs) != 1:
        raise _UsageError(f"{file}: has {len(jobs)} FineTuneJobs: give a file with one")
    return str(jobs[0]["spec"]["output"]["uri"])


def _samples(run_uri: str) -> list[Sample]:
    """Return the finished run's samples, or those that its newest attempt has kept so far."""
    folder = paths.join(run_uri, paths.SAMPLES_DIR)
    kept = [f"{paths.SAMPLES_DIR}/{name}" for name in names(folder)]
    for path in [*([paths.SAMPLES] if paths.SAMPLES in names(run_uri) else []), *reversed(kept)][:1]:
        try:
            return from_lines(read(paths.join(run_uri, path)).decode())
        except ValueError as error:
            raise StorageError(f"{paths.join(run_uri, path)}: not samples: {error}") from error
    return []


def _nothing(run_uri: str, found: list[Sample]) -> str:
    steps = sorted({sample.step for sample in found})
    if steps:
        return f"no samples at that step: there are those of {', '.join(map(str, steps))}"
    return f"no samples at {run_uri} yet"


def _lines(samples: Iterable[Sample]) -> Iterator[str]:
    """Yield each prompt with its answers below it."""
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(_last_turn(sample.prompt), []).append(sample)
    for prompt, answers in by_prompt.items():
        yield labelled("prompt", prompt)
        if answers[0].expected:
            yield labelled("expected", answers[0].expected)
        yield from (labelled(f"step {sample.step}" if sample.step else "base", sample.answer) for sample in answers)
        yield ""


def _last_turn(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else turn_text(prompt[-1])
