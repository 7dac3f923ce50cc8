"""Every example is valid, says in its first line what it is for, and finds its model and data in the store."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from dev.demo.seed import CLAIM, stored
from examples.data.records import routed
from finetune_operator.api.constants import JOB_KIND
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.cli.check import is_ours, problems_of
from finetune_operator.cli.documents import read_documents

ROOT = Path(__file__).parents[2]
STORED = stored()
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SAMPLES = sorted(path for path in (ROOT / "manifests" / "samples").glob("*.yaml") if path.stem != "kustomization")


def _id(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", [*EXAMPLES, *SAMPLES], ids=_id)
def test_is_valid(path: Path) -> None:
    documents = [document.value for document in read_documents(str(path)) if is_ours(document.value)]
    assert documents
    assert [problem for value in documents for problem in problems_of(value)] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=_id)
def test_says_first_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


def jobs_in(path: Path) -> list[dict[str, Any]]:
    values = [document.value for document in read_documents(str(path))]
    return [value for value in values if value["kind"] == JOB_KIND]


def test_there_is_one_for_each_method_and_no_two_share_name_or_output() -> None:
    jobs = [job for path in EXAMPLES for job in jobs_in(path)]
    assert {job["spec"]["method"] for job in jobs} == {"LoRA", "QLoRA", "Full"}
    assert len({job["metadata"]["name"] for job in jobs}) == len(jobs)
    assert len({job["spec"]["output"]["uri"] for job in jobs}) == len(jobs)


@pytest.mark.parametrize("path", EXAMPLES, ids=_id)
def test_finds_model_and_data_where_make_store_puts_them(path: Path) -> None:
    (job,) = jobs_in(path)
    spec = FineTuneJobSpec.model_validate(job["spec"])
    missing = [uri for uri in (spec.model.uri, *spec.dataset.uris) if not _is_stored(uri)]
    assert missing == []


def _is_stored(uri: str) -> bool:
    """Whether a folder, file, prefix or pattern names something of the store, or of the claim beside it."""
    on_store = uri.replace(f"pvc://{CLAIM}/", "s3://")
    return any(fnmatchcase(each, on_store) or (uri.endswith("/") and each.startswith(on_store)) for each in STORED)


@pytest.fixture(scope="module")
def tickets() -> list[tuple[str, str]]:
    turns = [record["messages"] for record in routed()]
    return [(user["content"], assistant["content"]) for user, assistant in turns]


def test_the_quickstarts_tickets_all_differ_and_carry_what_is_asked_for(tickets: list[tuple[str, str]]) -> None:
    assert len({text for text, _ in tickets}) == len(tickets) == 400
    for text, answer in tickets:
        _, order, _ = answer.split(" | ")
        assert order in text


def test_an_order_number_occurs_once_so_that_a_held_out_one_cannot_be_remembered(
    tickets: list[tuple[str, str]],
) -> None:
    orders = [answer.split(" | ")[1] for _, answer in tickets]
    assert len(set(orders)) == len(orders)
