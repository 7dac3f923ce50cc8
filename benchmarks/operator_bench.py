"""How fast the operator turns FineTuneJobs into batch Jobs: `make bench-operator`, or

    python -m benchmarks.operator_bench [--jobs 500] [--steady 100]

A real control plane without a node, so that only control planes work; the shipped manifests and rights. Measured from
the request that creates a FineTuneJob to the moment its batch Job is seen by a watch: at 5 jobs a second, and for a
burst. Beside the burst the same batch Jobs are created directly by the same client, which is the most that the API
server and its controllers give on this machine. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import copy
import http.client
import json
import os
import re
import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dev.cluster.local import LocalCluster
from dev.operator import NAMESPACE, LocalOperator
from finetune_operator.api.constants import GROUP, JOB_PLURAL, LABEL_JOB, VERSION

Body = dict[str, Any]
RATE = 5.0
SETTLE_SECONDS = 8.0
WAIT_SECONDS = 300.0
_UNCOUNTED = {"leases", "subjectaccessreviews", "tokenreviews", "selfsubjectaccessreviews"}
IN_POD: Body = {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "FineTuneProfile",
    "metadata": {"name": "in-pod", "annotations": {"finetuning.dev/is-default-profile": "true"}},
    "spec": {"prepare": {"mode": "InPod"}},
}
FINETUNEJOBS = f"/apis/{GROUP}/{VERSION}/namespaces/{{}}/{JOB_PLURAL}"
JOB: Body = {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "FineTuneJob",
    "metadata": {},
    "spec": {
        "method": "LoRA",
        "model": {"uri": "s3://models/base"},
        "dataset": {"uri": "s3://data/train.jsonl", "secretRef": {"name": "s3"}},
        "output": {"uri": "s3://models/out"},
    },
}


class Api:
    """One keep-alive connection to the API server, as fast as Python's standard library is."""

    def __init__(self, cluster: LocalCluster) -> None:
        credentials = cluster.control_plane.credentials("admin") if cluster.control_plane else None
        assert credentials is not None
        host, _, port = credentials.server.removeprefix("https://").partition(":")
        context = ssl.create_default_context(cafile=str(credentials.ca_file))
        self._connection = http.client.HTTPSConnection(host, int(port), context=context)
        self._headers = {"Authorization": f"Bearer {credentials.token}"}

    def call(self, method: str, path: str, body: Body | None = None) -> bytes:
        """Return the answer's body."""
        response = self.open(method, path, body)
        return response.read()

    def open(self, method: str, path: str, body: Body | None = None) -> http.client.HTTPResponse:
        """Return the answer, its body unread."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {**self._headers, "Content-Type": kind}
        self._connection.request(method, path, json.dumps(body) if body else None, headers)
        response = self._connection.getresponse()
        if response.status >= http.client.MULTIPLE_CHOICES:
            raise RuntimeError(f"{method} {path}: {response.status} {response.read()[:300]!r}")
        return response


class JobWatch:
    """When the batch Job of each FineTuneJob was first seen, by the FineTuneJob's name."""

    def __init__(self, cluster: LocalCluster, namespace: str) -> None:
        self.seen: dict[str, float] = {}
        self.bodies: list[Body] = []
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        version = json.loads(Api(cluster).call("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        self._stream = Api(cluster).open("GET", f"{path}?watch=1&resourceVersion={version}")
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, names: list[str]) -> None:
        """Wait until each was seen."""
        deadline = time.time() + WAIT_SECONDS
        while any(name not in self.seen for name in names):
            if time.time() > deadline:
                raise TimeoutError(f"{sum(name not in self.seen for name in names)} batch Jobs never came")
            time.sleep(0.02)

    def _read(self) -> None:
        for line in self._stream:
            event = json.loads(line)
            name = event["object"]["metadata"]["labels"].get(LABEL_JOB)
            if event["type"] == "ADDED" and name not in self.seen:
                self.seen[name] = time.time()
                self.bodies.append(event["object"])


def create(
    cluster: LocalCluster, namespace: str, count: int, *, rate: float | None
) -> tuple[list[float], float, JobWatch]:
    """Create FineTuneJobs; return the latencies in ms, the jobs a second, and what was seen."""
    api, watch, born = Api(cluster), JobWatch(cluster, namespace), {}
    start = time.time()
    for number in range(count):
        if rate:
            time.sleep(max(0.0, start + number / rate - time.time()))
        name = f"bench-{number}"
        body = {**JOB, "metadata": {"name": name}}
        born[name] = time.time()
        api.call("POST", FINETUNEJOBS.format(namespace), body)
    watch.wait_for(list(born))
    latencies = sorted((watch.seen[name] - time_) * 1000 for name, time_ in born.items())
    return latencies, count / (max(watch.seen.values()) - start), watch


def create_directly(cluster: LocalCluster, namespace: str, bodies: list[Body]) -> float:
    """Create the same batch Jobs without an operator; return the jobs a second."""
    api, start = Api(cluster), time.time()
    for number, body in enumerate(bodies):
        manifest = copy.deepcopy({key: body[key] for key in ("apiVersion", "kind", "spec")})
        for generated in ("selector", "manualSelector"):
            manifest["spec"].pop(generated, None)
        manifest["spec"]["template"]["metadata"].pop("labels")
        manifest["metadata"] = {"name": f"direct-{number}"}
        api.call("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs", manifest)
    return len(bodies) / (time.time() - start)


def writes(cluster: LocalCluster) -> collections.Counter[str]:
    """Return the writes that the API server has served, by verb and resource; leases and reviews left out."""
    counted: collections.Counter[str] = collections.Counter()
    for line in Api(cluster).call("GET", "/metrics").decode().splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and labels["resource"] not in _UNCOUNTED:
                counted[f"{labels['verb']} {labels['resource']}/{labels['subresource']}"] += int(
                    float(line.rsplit(" ", 1)[1])
                )
    return counted


def cpu_ms(pid: int) -> float:
    """Return the CPU time that a process has used, in ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int, field: str = "VmHWM") -> float:
    """Return the most memory that a process has held, in MB."""
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def measure(cluster: LocalCluster, operator: LocalOperator, *, jobs: int, steady: int) -> Body:
    """Run the three measurements, one after another, each in a namespace of its own."""
    for namespace in ("first", "steady", "burst", "direct"):
        cluster.kubectl("create", "namespace", namespace)
    create(cluster, "first", 5, rate=RATE)  # the watches of a new CRD take a second or two to begin
    steady_ms, _, _ = create(cluster, "steady", steady, rate=RATE)
    print(f"steady: {steady} jobs at {RATE:g} a second, p50 {quantile(steady_ms, 0.5)} ms", flush=True)
    time.sleep(SETTLE_SECONDS)
    before, cpu = writes(cluster), cpu_ms(operator.pid)
    burst_ms, burst_rate, watch = create(cluster, "burst", jobs, rate=None)
    print(f"burst: {jobs} jobs, {burst_rate:.1f} a second, p50 {quantile(burst_ms, 0.5)} ms", flush=True)
    time.sleep(SETTLE_SECONDS)
    counted, cpu = writes(cluster) - before, cpu_ms(operator.pid) - cpu
    for what, count in sorted(counted.items()):
        print(f"  {what:40} {count / jobs:6.2f} a job", flush=True)
    direct_rate = create_directly(cluster, "direct", watch.bodies)
    return {
        "jobs": jobs,
        "steady_p50_ms": quantile(steady_ms, 0.5),
        "steady_p99_ms": quantile(steady_ms, 0.99),
        "burst_jobs_per_s": round(burst_rate, 1),
        "direct_jobs_per_s": round(direct_rate, 1),
        "api_writes_per_job": round(sum(counted.values()) / jobs, 2),
        "cpu_ms_per_job": round(cpu / jobs, 2),
        "operator_rss_mb": round(rss_mb(operator.pid), 1),
    }


def quantile(ordered: list[float], share: float) -> float:
    """Return a quantile of ordered values."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


def main() -> None:
    """Measure, and print the JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500, help="FineTuneJobs of the burst")
    parser.add_argument("--in-pod", action="store_true", help="with a profile that has the training pod prepare")
    parser.add_argument("--steady", type=int, default=100, help=f"FineTuneJobs at {RATE:g} a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-operator-") as run_dir:
        cluster = LocalCluster(run_dir, backend="none", with_s3=False)
        with cluster, LocalOperator(cluster) as operator:
            print(f"operator in {NAMESPACE}, pid {operator.pid}", flush=True)
            if options.in_pod:
                cluster.kubectl("apply", "-f", "-", input=json.dumps(IN_POD))
            result = measure(cluster, operator, jobs=options.jobs, steady=options.steady)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
