"""Rules 8, 9, 10, 12 and 15: what the Job controller concludes from what the node tells it."""

import json
from pathlib import Path

import pytest

from tests.cluster.bench import (
    Bench,
    Manifest,
    condition,
    container,
    eventually,
    is_running,
    is_true,
    job,
    watched,
)

TRACKING = "batch.kubernetes.io/job-tracking"
FAIL_ON_ANY_CODE = {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0]}}


def test_rule_08_the_tracking_finalizer_is_the_job_controllers(bench: Bench, tmp_path: Path) -> None:
    # With a podFailurePolicy: without one the Job counts a pod as failed when it is deleted.
    policy = {"rules": [_rule_for(99)]}
    with watched(bench, "pods", tmp_path / "seen.json"):
        bench.create("jobs", job("eight", container("sleep 60"), podFailurePolicy=policy))
        (found,) = eventually(lambda: [found for found in bench.pods_of("eight") if is_running(found)])
        bench.delete("pods", found["metadata"]["name"])
        eventually(lambda: is_true(bench.get("jobs", "eight"), "Failed"))
    seen = _objects((tmp_path / "seen.json").read_text())
    tracked = [TRACKING in item["metadata"].get("finalizers", []) for item in seen]
    terminal = [item["status"]["phase"] == "Failed" for item in seen]
    assert tracked[0]
    assert tracked[terminal.index(True)]  # the end was told first
    ours = [entry for item in seen for entry in item["metadata"]["managedFields"] if entry["manager"] == "process-node"]
    assert ours
    assert all("f:metadata" not in entry["fieldsV1"] for entry in ours)


def test_rule_09_deleted_pod_of_a_job_counts_only_once_failed(bench: Bench) -> None:
    # With a podFailurePolicy the Job waits for the phase Failed, and would wait for ever without it.
    slow = container("trap 'sleep 2; exit 5' TERM; while :; do sleep 0.1; done")
    manifest = job("nine", slow, backoffLimit=1, podFailurePolicy={"rules": [_rule_for(99)]})
    manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20
    bench.create("jobs", manifest)
    (found,) = eventually(lambda: [found for found in bench.pods_of("nine") if is_running(found)])
    bench.delete("pods", found["metadata"]["name"])
    eventually(lambda: bench.get("jobs", "nine")["status"].get("terminating") == 1)
    assert "failed" not in bench.get("jobs", "nine")["status"]
    eventually(lambda: bench.get("jobs", "nine")["status"].get("failed") == 1)


@pytest.mark.parametrize("place", ["containers", "initContainers"])
def test_rule_10_exit_codes_of_both_kinds_decide_the_job(bench: Bench, place: str) -> None:
    failing, fine = container("exit 42", name="failing"), container("true", name="fine")
    template = {"initContainers": [failing]} if place == "initContainers" else {}
    containers = [fine] if template else [failing, fine]
    policy = {"rules": [_rule_for(42)]}
    bench.create("jobs", job("ten", *containers, template=template, backoffLimit=5, podFailurePolicy=policy))
    ended = eventually(lambda: (found := bench.get("jobs", "ten")) and is_true(found, "Failed") and found)
    assert condition(ended, "Failed")["reason"] == "PodFailurePolicy"
    assert "exit code 42" in condition(ended, "Failed")["message"]


def test_rule_12_a_job_fails_only_after_its_pods_have_ended(bench: Bench) -> None:
    slow = "trap 'sleep 2; exit 1' TERM; while :; do sleep 0.1; done"
    script = f"test $JOB_COMPLETION_INDEX = 1 || {{ sleep 1; exit 42; }}; {slow}"
    manifest = job(
        "twelve",
        container(script),
        template={"terminationGracePeriodSeconds": 20},
        completionMode="Indexed",
        completions=2,
        parallelism=2,
        podFailurePolicy={"rules": [FAIL_ON_ANY_CODE]},
    )
    bench.create("jobs", manifest)
    targeted = eventually(lambda: (found := bench.get("jobs", "twelve")) and is_true(found, "FailureTarget") and found)
    assert not is_true(targeted, "Failed")
    eventually(lambda: is_true(bench.get("jobs", "twelve"), "Failed"))
    assert {item["status"]["phase"] for item in bench.pods_of("twelve")} <= {"Failed"}


def test_rule_15_index_and_hostname_reach_the_container(bench: Bench) -> None:
    manifest = job(
        "fifteen",
        container("echo $JOB_COMPLETION_INDEX $(hostname)"),
        completionMode="Indexed",
        completions=2,
        parallelism=2,
    )
    bench.create("jobs", manifest)
    eventually(lambda: is_true(bench.get("jobs", "fifteen"), "Complete"))
    said = {bench.logs(found["metadata"]["name"]) for found in bench.pods_of("fifteen")}
    assert said == {"0 fifteen-0\n", "1 fifteen-1\n"}


def _rule_for(code: int) -> Manifest:
    return {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [code]}}


def _objects(text: str) -> list[Manifest]:
    decoder, found, position = json.JSONDecoder(), [], 0
    while position < len(text.rstrip()):
        item, position = decoder.raw_decode(text, position)
        found.append(item)
        while position < len(text) and text[position].isspace():
            position += 1
    return found
