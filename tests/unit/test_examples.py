"""Every example is valid, says in its first line what it is for, and the quickstart's data is what its text claims."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_operator.api.constants import JOB_KIND
from finetune_operator.cli.check import is_ours, problems_of
from finetune_operator.cli.documents import read_documents

ROOT = Path(__file__).parents[2]
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


def test_there_is_one_for_each_method_and_no_two_share_name_or_output() -> None:
    values = [document.value for path in EXAMPLES for document in read_documents(str(path))]
    jobs = [value for value in values if value["kind"] == JOB_KIND]
    assert {value["spec"]["method"] for value in jobs} == {"LoRA", "QLoRA", "Full"}
    assert len({value["metadata"]["name"] for value in jobs}) == len(jobs)
    assert len({value["spec"]["output"]["uri"] for value in jobs}) == len(jobs)


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    path = tmp_path_factory.mktemp("data") / "tickets.jsonl"
    script = ROOT / "examples" / "quickstart" / "make_data.py"
    subprocess.run([sys.executable, str(script), str(path)], check=True)
    examples = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(user["content"], assistant["content"]) for user, assistant in examples]


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
