"""What the node offers around containers: scheduling, logs, probes, rights, and faults on demand."""

import os
import subprocess
import time

import pytest

from dev.cluster.access import Api
from tests.cluster.bench import Bench, Manifest, container, eventually, is_running, is_true, pod, state, waiting_for
from tests.cluster.conftest import FIGURES


def test_images_are_names_with_what_they_bring_along(bench: Bench) -> None:
    spec = {"name": "main", "image": "registry.example/speaker:2"}
    bench.create("pods", pod("elsewhere", spec))
    bench.until("elsewhere", lambda found: waiting_for(found) == "ErrImagePull")  # not among the allowed ones
    bench.run(pod("speaks", spec | {"image": "speaker:2"}, nodeSelector={"nvidia.com/gpu.product": "pretend"}))
    assert bench.logs("speaks") == "hello\n"


def test_extended_resources_bound_what_is_scheduled(bench: Bench) -> None:
    limits: Manifest = {"resources": {"limits": {"nvidia.com/gpu": "3"}}}
    for name in ("gpu-a", "gpu-b", "gpu-c"):
        bench.create("pods", pod(name, container("sleep 60", **limits)))
    waiting = eventually(lambda: _unscheduled(bench))  # two nodes of four each
    assert len(waiting) == 1
    assert "Insufficient nvidia.com/gpu" in waiting[0]


def test_logs_follow_and_tail(bench: Bench) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.5; done"
    bench.create("pods", pod("talks", container(script)))
    bench.until("talks", lambda found: found["status"].get("phase") == "Running")
    assert bench.logs("talks", "--follow") == "line 1\nline 2\nline 3\n"
    assert bench.logs("talks", "--tail=1") == "line 3\n"


def test_readiness_by_command_and_over_http(bench: Bench) -> None:
    serve = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
    port = 20000 + os.getpid() % 10000
    command = {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1}
    http = {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1}
    slow = container("sleep 1; touch /tmp/ready; sleep 60", name="slow", readinessProbe=command)
    server = container(["python", "-c", serve.format(port=port)], name="server", workingDir="/tmp", readinessProbe=http)
    bench.create("pods", pod("probed", slow, server))
    half = bench.until("probed", lambda found: found["status"].get("phase") == "Running")
    assert not is_true(half, "Ready")
    bench.until("probed", is_running)


def test_command_that_is_not_there(bench: Bench) -> None:
    ended = bench.run(pod("typo", container(["no-such-command"])))
    ending = state(ended)["terminated"]
    assert (ending["exitCode"], ending["reason"]) == (128, "StartError")
    assert "no-such-command" in ending["message"]


def test_fault_kill_for_memory(bench: Bench) -> None:
    bench.create("pods", pod("victim", container("sleep 60"), nodeName="node-0"))
    bench.until("victim", is_running)
    bench.cluster.node("node-0").kill_for_memory(bench.namespace, "victim")
    ended = bench.until("victim", lambda found: found["status"]["phase"] == "Failed")
    ending = state(ended)["terminated"]
    assert (ending["exitCode"], ending["reason"]) == (137, "OOMKilled")


def test_fault_hang_and_resume(bench: Bench) -> None:
    bench.create("pods", pod("hangs", container("while :; do echo tick; sleep 0.1; done"), nodeName="node-0"))
    bench.until("hangs", is_running)
    node = bench.cluster.node("node-0")
    node.hang(bench.namespace, "hangs")
    time.sleep(0.3)
    still = bench.logs("hangs")
    time.sleep(0.5)
    assert bench.logs("hangs") == still
    node.resume(bench.namespace, "hangs")
    eventually(lambda: len(bench.logs("hangs")) > len(still))


def test_deleting_a_pod_that_hangs(bench: Bench) -> None:
    bench.create("pods", pod("stuck", container("sleep 60"), nodeName="node-0"))
    bench.until("stuck", is_running)
    bench.cluster.node("node-0").hang(bench.namespace, "stuck")
    bench.delete("pods", "stuck", gracePeriodSeconds=1)
    eventually(lambda: not bench.get("pods", "stuck"))


def test_a_container_costs_little_to_start(bench: Bench) -> None:
    name = bench.create("pods", pod("quick", *(container("true", name=f"c{number}") for number in range(5))))
    ended = bench.until("quick", lambda found: found["status"].get("phase") == "Succeeded")
    assert ended["metadata"]["uid"] == name["metadata"]["uid"]
    started = time.monotonic()
    bench.run(pod("timed", container(["python", "-c", "pass"])))
    FIGURES.append(f"a pod that runs `python -c pass`: {time.monotonic() - started:.2f} s from POST to Succeeded")


def test_a_service_account_has_its_own_rights_only(bench: Bench) -> None:
    kubeconfig = bench.cluster.kubeconfig_for_service_account(bench.namespace, "default")
    command = [str(bench.cluster.binaries / "kubectl"), f"--kubeconfig={kubeconfig}"]
    who = subprocess.run([*command, "auth", "whoami"], capture_output=True, text=True, check=True)
    assert f"system:serviceaccount:{bench.namespace}:default" in who.stdout
    refused = subprocess.run([*command, "get", "secrets"], capture_output=True, text=True, check=False)
    assert "Forbidden" in refused.stderr


@pytest.mark.parametrize("path", ["/api/v1/namespaces/default/secrets", "/api/v1/namespaces/kube-system/configmaps"])
def test_a_node_may_not_read_what_its_pods_do_not_name(bench: Bench, path: str) -> None:
    assert bench.cluster.control_plane
    node = Api(bench.cluster.control_plane.credentials("node-0"))
    assert node.request("GET", path)[0] == 403


def _unscheduled(bench: Bench) -> list[str]:
    found = [bench.get("pods", name) for name in ("gpu-a", "gpu-b", "gpu-c")]
    scheduled: list[Manifest] = [next(iter(item["status"].get("conditions", [])), {}) for item in found]
    if sum(is_running(item) for item in found) < 2:
        return []
    return [item["message"] for item in scheduled if item.get("reason") == "Unschedulable"]
