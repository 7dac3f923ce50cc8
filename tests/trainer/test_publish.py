"""The push to the hub: after the manifest, once, and never at the price of the outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.outcome import Manifest
from tests.support.hub import TOKEN, FakeHub, running
from tests.support.prepared import Case
from tests.support.training import THIRD_PARTY, Outcome, forget_preemption, make_case, train

pytestmark = THIRD_PARTY

REPO = "team/adder"


def case_of(folder: Path, **output: Any) -> Case:
    wanted = {"uri": f"file://{folder}/out", "hub": {"repo": REPO}, **output}
    return make_case(folder, spec={"output": wanted}, total_steps=1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running(FakeHub(REPO, tmp_path)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setenv("HUB_HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_TOKEN", "hf_another_one")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the fake has plain storage
        yield served
    forget_preemption()


@pytest.fixture
def down_at_first(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr("finetune_trainer.storage.hub.time.sleep", lambda _: None)
    hub.down = True
    return hub


def manifest_of(outcome: Outcome) -> Manifest:
    return Manifest.model_validate_json((outcome.run / paths.MANIFEST).read_bytes())


def test_everything_in_the_manifest_is_pushed_with_the_model_at_the_top(hub: FakeHub, tmp_path: Path) -> None:
    outcome = train(case_of(tmp_path))
    sent = {hashlib.sha256(content).hexdigest() for content in hub.pushed.values()}

    assert {file.sha256 for file in manifest_of(outcome).files} <= sent
    assert {"model.safetensors", "config.json", "README.md", "adapter/adapter_config.json", "manifest.json"} <= set(
        hub.pushed
    )
    assert hub.created == {REPO: True}
    assert outcome.result.hub
    assert (outcome.result.hub.repo, outcome.result.warnings) == (REPO, ())


def test_without_merged_weights_the_adapter_lies_at_the_top(hub: FakeHub, tmp_path: Path) -> None:
    train(case_of(tmp_path, merged={"enabled": False}, hub={"repo": REPO, "private": False}))

    assert "adapter_config.json" in hub.pushed
    assert hub.created == {REPO: False}


def test_a_hub_that_is_down_costs_a_warning_and_a_later_attempt_pushes(down_at_first: FakeHub, tmp_path: Path) -> None:
    case = case_of(tmp_path)
    outcome = train(case)
    (warning,) = outcome.result.warnings
    assert f"output.hub: not pushed to {REPO}: the hub answered 503" in warning
    assert manifest_of(outcome).artifacts.keys() == {"adapter", "merged"}

    down_at_first.down = False
    again = train(case.attempt(2))
    assert again.result.hub
    assert again.result.warnings == ()
    assert "model.safetensors" in down_at_first.pushed


def test_a_push_that_is_done_is_not_done_again(hub: FakeHub, tmp_path: Path) -> None:
    case = case_of(tmp_path)
    first = train(case).result.hub

    assert train(case.attempt(2)).result.hub == first
    assert hub.commits == 1


def test_a_token_that_may_not_write_is_named_and_not_shown(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_HF_TOKEN", "hf_may_only_read")
    (warning,) = train(case_of(tmp_path)).result.warnings

    assert "output.hub.secretRef must be able to write" in warning
    assert "hf_may_only_read" not in warning
    assert hub.pushed == {}
