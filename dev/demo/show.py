"""The end of the demo: the job as kubectl shows it, base against tuned, whether what lies in the store is right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import boto3

from dev.demo.access import Access
from finetune_contract.evaluation import EvaluationSummary
from finetune_operator.cli.results import before_and_after, comparison
from finetune_operator.cli.verify import human_bytes, verify

Status = dict[str, Any]


class WrongOutputError(Exception):
    """The outputs are not what status and manifest say."""


def show_results(access: Access, name: str, status: Status, *, namespace: str) -> None:
    """Print the sections of a job that has succeeded."""
    os.environ.update(access.s3)
    uri = status["outputs"]["uri"]
    _section("kubectl get finetunejobs")
    print(access.kubectl("get", "ftj", name, "-n", namespace).rstrip())
    _section("base against tuned")
    print(*comparison(EvaluationSummary.model_validate(status["evaluation"])), sep="\n")
    _section("answers before and after")
    print("\n".join(before_and_after(uri)).rstrip())
    _section(f"objects below {uri}")
    print(*_objects(uri), sep="\n")
    _section("the outputs against manifest.json")
    print(check_outputs(status))


def check_outputs(status: Status) -> str:
    """Read every output back. Raises WrongOutputError if one is not what the status and the manifest say."""
    outputs = status["outputs"]
    verified = verify(outputs["uri"])
    if verified.problems:
        raise WrongOutputError("\n".join(verified.problems))
    if verified.sha256 != outputs["manifestSha256"]:
        raise WrongOutputError(f"{outputs['manifest']} is not the one that the status names")
    for kind, artifact in verified.manifest.artifacts.items():
        if outputs[kind]["sha256"] != artifact.sha256:
            raise WrongOutputError(f"status.outputs.{kind}.sha256 is not the manifest's")
    return f"{len(verified.manifest.files)} files, {human_bytes(verified.bytes)}: sha256 of each as in the manifest"


def explain_failure(status: Status) -> Iterator[str]:
    """Yield why a job failed, from its status alone."""
    last = status.get("lastFailure", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "Failed":
            yield f"{condition['reason']}: {condition.get('message', '')}"
    if last.get("logTail"):
        yield f"the end of the log of {last.get('pod') or last['stage']}:"
        yield from (f"  {line}" for line in last["logTail"].splitlines())


def _objects(uri: str) -> Iterator[str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        for item in (item for page in pages for item in page.get("Contents", ())):
            yield f"{human_bytes(item['Size']):>10}  {item['Key'].removeprefix(prefix + '/')}"
    finally:
        client.close()


def _section(title: str) -> None:
    print(f"\n--- {title} ---", flush=True)
