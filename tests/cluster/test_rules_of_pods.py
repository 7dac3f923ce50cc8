"""Rules 1 to 7 and 13: what a pod goes through, told step by step.

The sixteen rules are what the control plane relies on from a node. Each is tested against
the real control plane, and numbered as everywhere in this project.
"""

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
)


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
    bench.create("pods", pod("four", container("exit 3"), container("sleep 4", name="late")))
    # On a busy machine the first may have ended before the second has started.
    half = bench.until("four", lambda found: "terminated" in state(found) and "running" in state(found, 1))
    assert half["status"]["phase"] == "Running"
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


def _events(bench: Bench, *, reason: str) -> list[Manifest]:
    items = bench.cluster.api.get(bench.path("events"))["items"]
    return [event for event in items if event["reason"] == reason]
