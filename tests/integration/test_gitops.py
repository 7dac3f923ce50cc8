"""Flux and Argo CD, asked about a FineTuneJob in every phase: they see what our own conditions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cluster.gitops import Verdict, verdicts
from dev.cluster.local import LocalCluster
from finetune_operator.api.conditions import Phase
from tests.support.lives import LIVES, body_of
from tests.support.manifests import KUSTOMIZE, kustomize_objects
from tests.unit.rule_cases import job

ARGO = KUSTOMIZE / "argocd"
SCRIPT = (ARGO / "finetunejob-health.lua").read_text()
# What a job that is Ready, Reconciling or Stalled is to each of them: Argo CD knows suspended ones as well.
EXPECTED = {
    "Ready": ("Current", {"Healthy"}),
    "Reconciling": ("InProgress", {"Progressing", "Suspended"}),
    "Stalled": ("Failed", {"Degraded"}),
}


def ask(body: dict[str, Any]) -> Verdict:
    (verdict,) = verdicts([body], script=SCRIPT)
    return verdict


def test_every_phase_is_told() -> None:
    assert set(LIVES) == set(Phase)
    assert {phase: LIVES[phase]().phase for phase in Phase} == {phase: phase for phase in Phase}


@pytest.mark.parametrize("phase", Phase)
def test_both_see_what_our_conditions_say(phase: Phase) -> None:
    body = body_of(LIVES[phase]())
    (true,) = [
        item["type"] for item in body["status"]["conditions"] if item["type"] in EXPECTED and item["status"] == "True"
    ]
    verdict = ask(body)
    kstatus, argo = EXPECTED[true]
    assert verdict.kstatus == kstatus
    assert verdict.argo in argo
    assert (verdict.argo == "Suspended") == (phase is Phase.SUSPENDED)


def test_argo_shows_phase_and_message() -> None:
    message = ask(body_of(LIVES[Phase.FAILED]())).argo_message
    assert message == "Failed: The data cannot be read as examples; the message names file and line."


def test_after_a_change_of_the_spec_both_wait_for_the_operator() -> None:
    body = body_of(LIVES[Phase.SUCCEEDED]())
    body["metadata"]["generation"] += 1
    verdict = ask(body)
    assert (verdict.kstatus, verdict.argo) == ("InProgress", "Progressing")


def test_a_job_that_no_operator_has_seen_yet_is_in_progress(cluster: LocalCluster, namespace: str) -> None:
    # kstatus takes an object without a status for done, and whoever waits for it would go on.
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(job()))
    stored = json.loads(cluster.kubectl("get", "ftj", "-n", namespace, "-o", "json"))["items"][0]
    verdict = ask(stored)
    assert (verdict.kstatus, verdict.argo) == ("InProgress", "Progressing")


def test_the_component_puts_the_check_where_argo_cd_reads_it(tmp_path: Path) -> None:
    argocd_cm = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "argocd-cm"},
        "data": {"url": "https://a"},
    }
    (tmp_path / "argocd").symlink_to(ARGO)
    (tmp_path / "argocd-cm.yaml").write_text(yaml.safe_dump(argocd_cm))
    kustomization = {"resources": ["argocd-cm.yaml"], "components": ["argocd"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (found,) = kustomize_objects(tmp_path).values()
    assert found["data"] == {"url": "https://a", "resource.customizations.health.finetuning.dev_FineTuneJob": SCRIPT}
