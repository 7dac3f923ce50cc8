"""The sixteen rules that the control plane relies on, each against the real control plane.

They are numbered as in docs and in `dev/cluster/node`: what a pod goes through, what the Job
controller concludes from it, and what a node owes the rest of the cluster.
"""

import json
from pathlib import Path

import pytest

from dev.cluster.local import LocalCluster
from tests.cluster.bench import (
    Bench,
    Manifest,
    condition,
    container,
    eventually,
    is_running,
    is_true,
    job,
    mounted,
    pod,
    state,
    waiting_for,
    watched,
)
from tests.cluster.conftest import DELETED, LOST

TRACKING = "batch.kubernetes.io/job-tracking"
FAIL_ON_ANY_CODE = {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0]}}


def test_rule_01_bound_pod_is_pending_with_waiting_containers(bench: Bench) -> None:
    bench.create("pods", pod("one", container("true"), initContainers=[container("sleep 3", name="first")]))
    found = bench.until("one", lambda found: found["status"].get("initContainerStatuses"))
    assert found["status"]["phase"] == "Pending"
    assert found["status"]["startTime"]
    assert waiting_for(found) == "PodInitializing"
    truths = {kind: condition(found, kind).get("status") for kind in ("PodScheduled", "Initialized", "Ready")}
    assert truths == {"PodScheduled": "True", "Initialized": "False", "Ready": "False"}
    assert condition(found, "ContainersReady")["status"] == "False"


def test_rule_01_without_init_containers_the_reason_is_container_creating(bench: Bench) -> None:
    node = bench.cluster.node("node-0")
    node.slow_down(2)
    try:
        bench.create("pods", pod("slow", container("true"), nodeName="node-0"))
        found = bench.until("slow", lambda found: is_true(found, "PodReadyToStartContainers"))
        assert waiting_for(found) == "ContainerCreating"
        assert bench.until("slow", lambda found: found["status"]["phase"] == "Succeeded")
    finally:
        node.slow_down(0)


def test_rule_02_init_containers_run_in_order(bench: Bench) -> None:
    mount = mounted("shared", "/shared")
    first = [container(f"echo {name} >> /shared/order", name=name, **mount) for name in ("a", "b")]
    said = bench.output(
        "cat /shared/order", container=mount, initContainers=first, volumes=[{"name": "shared", "emptyDir": {}}]
    )
    assert said.split() == ["a", "b"]


def test_rule_02_failed_init_container_fails_the_pod_and_the_rest_stays_waiting(bench: Bench) -> None:
    first = [container("exit 9", name="first"), container("true", name="second")]
    ended = bench.run(pod("two", container("true"), initContainers=first))
    assert ended["status"]["phase"] == "Failed"
    assert ended["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 9
    assert ended["status"]["initContainerStatuses"][1]["state"]["waiting"]["reason"] == "PodInitializing"
    assert waiting_for(ended) == "PodInitializing"
    assert not is_true(ended, "Initialized")


def test_rule_03_running_pod_is_ready_and_counted_by_the_job(bench: Bench) -> None:
    bench.create("jobs", job("three", container("sleep 60")))
    eventually(lambda: bench.get("jobs", "three")["status"].get("ready") == 1)
    (found,) = bench.pods_of("three")
    assert found["status"]["phase"] == "Running"
    status = found["status"]["containerStatuses"][0]
    assert (status["ready"], status["started"]) == (True, True)
    assert status["state"]["running"]["startedAt"]
    assert is_true(found, "Ready")
    assert is_true(found, "ContainersReady")


def test_rule_04_phase_is_terminal_only_when_every_container_has_stopped(bench: Bench) -> None:
    bench.create("pods", pod("four", container("exit 3"), container("sleep 2", name="late")))
    half = bench.until("four", lambda found: "terminated" in state(found))
    assert (half["status"]["phase"], "running" in state(half, 1)) == ("Running", True)
    ended = bench.until("four", lambda found: found["status"]["phase"] == "Failed")
    first, late = (state(ended, index)["terminated"] for index in (0, 1))
    assert (first["exitCode"], first["reason"]) == (3, "Error")
    assert (late["exitCode"], late["reason"]) == (0, "Completed")
    assert first["startedAt"] <= first["finishedAt"] <= late["finishedAt"]
    assert condition(ended, "Ready")["reason"] == "PodFailed"


def test_rule_04_success_is_completed_and_no_longer_ready(bench: Bench) -> None:
    ended = bench.run(pod("good", container("true")))
    assert ended["status"]["phase"] == "Succeeded"
    assert condition(ended, "Ready") | {"lastTransitionTime": ""} == condition(ended, "ContainersReady") | {
        "type": "Ready",
        "lastTransitionTime": "",
    }
    assert condition(ended, "Ready")["reason"] == "PodCompleted"


def test_rule_04_exceeding_the_memory_limit_is_a_kill_named_oomkilled(bench: Bench) -> None:
    greedy = ["python", "-c", "import time; x = bytearray(200 << 20); time.sleep(60)"]
    ended = bench.run(pod("greedy", container(greedy, resources={"limits": {"memory": "100Mi"}})))
    ending = state(ended)["terminated"]
    assert (ending["exitCode"], ending["reason"]) == (137, "OOMKilled")


def test_rule_05_message_is_the_end_of_the_file_and_shared_among_containers(bench: Bench) -> None:
    long = ["python", "-c", "print('a' * 5000 + 'b' * 4000 + 'END', file=open('/dev/termination-log', 'w'))"]
    containers = [container(long, name=f"c{number}") for number in range(4)]
    four = bench.run(pod("five", *containers))
    # The last 4096 bytes, of which four containers may keep 12288 / 4 each.
    assert state(four)["terminated"]["message"] == ("a" * 92 + "b" * 4000 + "END\n")[:3072]
    one = bench.run(pod("alone", container(long)))
    assert state(one)["terminated"]["message"] == "a" * 92 + "b" * 4000 + "END\n"


def test_rule_05_message_may_have_another_path_or_fall_back_to_the_log(bench: Bench) -> None:
    elsewhere = container("echo here > /tmp/last", name="path", terminationMessagePath="/tmp/last")
    script = "for i in $(seq 200); do echo line $i; done; exit 1"
    fallback = container(script, name="log", terminationMessagePolicy="FallbackToLogsOnError")
    silent = container(script, name="silent")
    ended = bench.run(pod("fallback", elsewhere, fallback, silent))
    assert state(ended, 0)["terminated"]["message"] == "here\n"
    lines = state(ended, 1)["terminated"]["message"].splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("line 121", "line 200", 80)
    assert "message" not in state(ended, 2)["terminated"]


def test_rule_06_failed_container_restarts_in_place(bench: Bench) -> None:
    bench.create("pods", pod("six", container("echo run; exit 4"), restartPolicy="OnFailure"))
    found = bench.until("six", lambda found: waiting_for(found) == "CrashLoopBackOff")
    status = found["status"]["containerStatuses"][0]
    assert found["status"]["phase"] == "Running"
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 4
    assert bench.logs("six", "--previous") == "run\n"


def test_rule_06_on_failure_ends_with_success(bench: Bench) -> None:
    mount = mounted("kept", "/kept")
    once = container("test -e /kept/x || { touch /kept/x; exit 1; }", **mount)
    ended = bench.run(
        pod("again", once, restartPolicy="OnFailure", volumes=[{"name": "kept", "emptyDir": {"sizeLimit": "1Mi"}}])
    )
    assert ended["status"]["phase"] == "Succeeded"
    assert ended["status"]["containerStatuses"][0]["restartCount"] == 1


def test_rule_07_deleted_pod_is_told_failed_before_it_goes(bench: Bench) -> None:
    polite = container("trap 'exit 7' TERM; while :; do sleep 0.1; done")
    held = {"finalizers": ["example.com/held"]}
    bench.create("pods", pod("seven", polite, metadata=held, terminationGracePeriodSeconds=10))
    bench.until("seven", is_running)
    bench.delete("pods", "seven")
    ended = bench.until("seven", lambda found: found["status"]["phase"] == "Failed")
    assert ended["metadata"]["deletionTimestamp"]
    assert state(ended)["terminated"]["exitCode"] == 7
    assert not is_true(ended, "Ready")
    # The node has confirmed the deletion; the object only waits for its finalizer.
    bench.until("seven", lambda found: found["metadata"]["deletionGracePeriodSeconds"] == 0)
    bench.cluster.kubectl(
        f"--namespace={bench.namespace}", "patch", "pod", "seven", "--patch", '{"metadata":{"finalizers":null}}'
    )
    eventually(lambda: not bench.get("pods", "seven"))


def test_rule_07_grace_over_means_killed(bench: Bench) -> None:
    deaf = container("trap '' TERM; while :; do sleep 0.1; done")
    held = {"finalizers": ["example.com/held"]}
    bench.create("pods", pod("deaf", deaf, metadata=held, terminationGracePeriodSeconds=1))
    bench.until("deaf", is_running)
    bench.delete("pods", "deaf")
    ended = bench.until("deaf", lambda found: found["status"]["phase"] == "Failed")
    assert state(ended)["terminated"]["exitCode"] == 137
    bench.cluster.kubectl(
        f"--namespace={bench.namespace}", "patch", "pod", "deaf", "--patch", '{"metadata":{"finalizers":null}}'
    )


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


def test_rule_11_what_others_say_about_a_pod_survives(bench: Bench) -> None:
    held = {"finalizers": ["example.com/held"]}
    bench.create("pods", pod("eleven", container("sleep 60"), metadata=held))
    bench.until("eleven", is_running)
    bench.cluster.evict(bench.namespace, "eleven")
    ended = bench.until("eleven", lambda found: found["status"]["phase"] == "Failed")
    assert condition(ended, "DisruptionTarget")["reason"] == "EvictionByEvictionAPI"
    bench.cluster.kubectl(
        f"--namespace={bench.namespace}", "patch", "pod", "eleven", "--patch", '{"metadata":{"finalizers":null}}'
    )


def test_rule_11_a_node_under_pressure_says_so_itself(bench: Bench) -> None:
    bench.create("pods", pod("pressed", container("sleep 60"), nodeName="node-1"))
    bench.until("pressed", is_running)
    bench.cluster.node("node-1").evict_for_pressure(bench.namespace, "pressed")
    ended = bench.until("pressed", lambda found: found["status"]["phase"] == "Failed")
    assert ended["status"]["reason"] == "Evicted"
    assert condition(ended, "DisruptionTarget")["reason"] == "TerminationByKubelet"


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


def test_rule_13_missing_secret_in_env_waits_and_then_goes_on(bench: Bench) -> None:
    source = {"secretRef": {"name": "late"}, "prefix": "MODEL_"}
    bench.create("pods", pod("waits", container("test $MODEL_KEY = value", envFrom=[source])))
    found = bench.until("waits", lambda found: waiting_for(found) == "CreateContainerConfigError")
    assert found["status"]["phase"] == "Pending"
    assert "late" in state(found)["waiting"]["message"]
    bench.create("secrets", {"metadata": {"name": "late"}, "stringData": {"KEY": "value"}})
    bench.until("waits", lambda found: found["status"]["phase"] == "Succeeded")


def test_rule_13_missing_secret_in_a_volume_shows_in_an_event_only(bench: Bench) -> None:
    volume = {"name": "gone", "secret": {"secretName": "gone"}}
    bench.create("pods", pod("mounts", container("true"), volumes=[volume]))
    events = eventually(lambda: _events(bench, reason="FailedMount"))
    assert 'secrets "gone" not found' in events[0]["message"]
    found = bench.get("pods", "mounts")
    assert waiting_for(found) == "ContainerCreating"
    assert found["status"]["phase"] == "Pending"


def test_rule_13_unknown_image_is_not_pulled(bench: Bench) -> None:
    bench.create("pods", pod("image", container("true", image="trainer:missing")))
    bench.until("image", lambda found: waiting_for(found) == "ErrImagePull")
    bench.until("image", lambda found: waiting_for(found) == "ImagePullBackOff")
    bench.delete("pods", "image")
    eventually(lambda: not bench.get("pods", "image"))


def test_rule_13_deadline_fails_the_pod(bench: Bench) -> None:
    ended = bench.run(pod("deadline", container("sleep 60"), activeDeadlineSeconds=1))
    assert (ended["status"]["phase"], ended["status"]["reason"]) == ("Failed", "DeadlineExceeded")


def test_rule_14_lease_is_renewed(bench: Bench) -> None:
    lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-0"
    renewed = bench.cluster.api.get(lease)["spec"]["renewTime"]
    eventually(lambda: bench.cluster.api.get(lease)["spec"]["renewTime"] > renewed)
    assert is_true(_node(bench.cluster, "node-0"), "Ready")


def test_rule_14_lost_node_is_noticed_and_its_pods_are_evicted(cluster: LocalCluster) -> None:
    # It was lost at the very start; its pod tolerates that for a second.
    bench, name = Bench(cluster, "default"), f"on-{LOST}"
    found = bench.until(name, lambda found: "deletionTimestamp" in found["metadata"])
    assert condition(_node(cluster, LOST), "Ready")["status"] == "Unknown"
    assert condition(found, "DisruptionTarget")["reason"] == "DeletionByTaintManager"
    assert found["status"]["phase"] == "Running"  # nobody is there to say otherwise
    cluster.node(LOST).recover()
    eventually(lambda: is_true(_node(cluster, LOST), "Ready"))
    eventually(lambda: not bench.get("pods", name))


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


def test_rule_16_pods_have_addresses_and_names_and_reach_each_other(bench: Bench) -> None:
    bench.create("services", {"metadata": {"name": "gang"}, "spec": {"clusterIP": "None", "selector": {"gang": "a"}}})
    server = (
        "import socket; server = socket.create_server((socket.gethostbyname(socket.gethostname()), 29555));"
        "server.accept()[0].sendall(b'hello')"
    )
    client = """
import socket, time
for _ in range(200):
    try:
        print(socket.create_connection(("gang-0.gang", 29555), 1).recv(5).decode(), flush=True)
        break
    except OSError:
        time.sleep(0.1)
"""
    script = f"import os; exec({client!r} if os.environ['JOB_COMPLETION_INDEX'] == '1' else {server!r})"
    manifest = job(
        "gang",
        container(["python", "-c", script]),
        template={"subdomain": "gang"},
        completionMode="Indexed",
        completions=2,
        parallelism=2,
    )
    manifest["spec"]["template"]["metadata"] = {"labels": {"gang": "a"}}
    bench.create("jobs", manifest)
    eventually(lambda: is_true(bench.get("jobs", "gang"), "Complete"))
    pods = bench.pods_of("gang")
    addresses = {found["status"]["podIP"] for found in pods}
    assert len(addresses) == 2
    assert not any(address.startswith("127.") for address in addresses)
    assert "hello\n" in {bench.logs(found["metadata"]["name"]) for found in pods}


def test_rule_16_a_server_of_the_host_is_reached_through_a_service(bench: Bench, tmp_path: Path) -> None:
    # As the operator's leader does: a Service without a selector, and an EndpointSlice for it.
    bench.create("services", {"metadata": {"name": "operator"}, "spec": {"ports": [{"port": 443}]}})
    endpoints = {
        "metadata": {"name": "operator-1", "labels": {"kubernetes.io/service-name": "operator"}},
        "addressType": "IPv4",
        "ports": [{"port": 443}],
        "endpoints": [{"addresses": [bench.cluster.reachable_host]}],
    }
    bench.create("endpointslices", endpoints)
    port = bench.cluster.server.rpartition(":")[2]
    name = f"operator.{bench.namespace}.svc"
    script = f"import socket; print(socket.create_connection(('{name}', {port})).getpeername()[0])"
    assert eventually(lambda: bench.output(["python", "-c", script])) == "127.0.0.1\n"


def test_rule_14_pods_of_a_deleted_node_are_failed_by_garbage_collection(cluster: LocalCluster) -> None:
    # Last, because the control plane takes a minute for it; the node was deleted at the very start.
    bench = Bench(cluster, "default")
    assert cluster.api.get(f"/api/v1/nodes/{DELETED}") is None
    eventually(lambda: _was_collected(bench), timeout=120)


def _was_collected(bench: Bench) -> bool:
    found = bench.get("pods", f"on-{DELETED}")
    return not found or condition(found, "DisruptionTarget").get("reason") == "DeletionByPodGC"


def _rule_for(code: int) -> Manifest:
    return {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [code]}}


def _node(cluster: LocalCluster, name: str) -> Manifest:
    found: Manifest = cluster.api.get(f"/api/v1/nodes/{name}")
    return found


def _events(bench: Bench, *, reason: str) -> list[Manifest]:
    items = bench.cluster.api.get(bench.path("events"))["items"]
    return [event for event in items if event["reason"] == reason]


def _objects(text: str) -> list[Manifest]:
    decoder, found, position = json.JSONDecoder(), [], 0
    while position < len(text.rstrip()):
        item, position = decoder.raw_decode(text, position)
        found.append(item)
        while position < len(text) and text[position].isspace():
            position += 1
    return found
