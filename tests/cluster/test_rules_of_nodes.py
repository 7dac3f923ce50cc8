"""Rules 11, 14 and 16: disruptions, lost nodes, addresses and names."""

from pathlib import Path

from dev.cluster import LocalCluster
from tests.cluster.bench import Bench, Manifest, condition, container, eventually, is_running, is_true, job, pod
from tests.cluster.conftest import DELETED, LOST


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


def test_rule_14_pods_of_a_deleted_node_are_failed_by_garbage_collection(cluster: LocalCluster) -> None:
    # Last, because the control plane takes a minute for it; the node was deleted at the very start.
    bench = Bench(cluster, "default")
    assert cluster.api.get(f"/api/v1/nodes/{DELETED}") is None
    eventually(lambda: _was_collected(bench), timeout=120)


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


def _was_collected(bench: Bench) -> bool:
    found = bench.get("pods", f"on-{DELETED}")
    return not found or condition(found, "DisruptionTarget").get("reason") == "DeletionByPodGC"


def _node(cluster: LocalCluster, name: str) -> Manifest:
    found: Manifest = cluster.api.get(f"/api/v1/nodes/{name}")
    return found
