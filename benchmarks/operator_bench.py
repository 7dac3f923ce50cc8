"""How fast the operator turns FineTuneJobs into batch Jobs: `make bench-operator`, or

    python -m benchmarks.operator_bench [--jobs 500] [--steady 100]

A real control plane with one node that takes pods and never starts them, so that only control planes work; the shipped
manifests and rights; the training pod prepares, so that one batch Job a FineTuneJob is all, as with others. Measured
from the request that creates a FineTuneJob to the moment its batch Job is seen by a watch: at 5 jobs a second, and for
a burst. Beside the burst the same batch Jobs are created directly by the same client, which is the most that the API
server and its controllers give on this machine. Then jobs live from beginning to end, and their writes are counted.

`benchmarks.operator_peers` measures others in the same way. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import tempfile
import threading
import time
from dataclasses import dataclass

from benchmarks.measuring import Api, Body, cpu_ms, quantile, rss_mb, writes
from benchmarks.pretended import PretendedNode, PretendedPods
from dev.cluster.local import LocalCluster
from dev.operator import NAMESPACE, LocalOperator
from finetune_operator.api.constants import GROUP, JOB_PLURAL, VERSION
from tests.support.builders import prepared_message, trained_message

RATE = 5.0
SETTLE_SECONDS = 8.0
WAIT_SECONDS = 300.0
LIVES = 50
TRAINING_SECONDS = 5.0
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


@dataclass(frozen=True)
class Work:
    """What an operator is given."""

    collection: str
    """Path of its custom resources, with {} for the namespace."""
    body: Body
    """One of them, without its name."""


OURS = Work(FINETUNEJOBS, JOB)


class JobWatch:
    """When the batch Job of each custom resource was first seen, by the resource's name: what its own begins with."""

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
            now, event = time.time(), json.loads(line)
            name = event["object"]["metadata"]["name"].partition("-")[0]
            if event["type"] == "ADDED" and name not in self.seen:
                self.seen[name] = now
                self.bodies.append(event["object"])


def create(
    cluster: LocalCluster, namespace: str, count: int, *, rate: float | None, work: Work = OURS
) -> tuple[list[float], float, JobWatch]:
    """Create custom resources; return the latencies in ms, the jobs a second, and what was seen."""
    api, watch, born = Api(cluster), JobWatch(cluster, namespace), dict[str, float]()
    start = time.time()
    for number in range(count):
        if rate:
            time.sleep(max(0.0, start + number / rate - time.time()))
        name = f"bench{number}"
        born[name] = time.time()
        api.call("POST", work.collection.format(namespace), {**work.body, "metadata": {"name": name}})
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


def measure(cluster: LocalCluster, work: Work, pids: tuple[int, ...], *, jobs: int, steady: int) -> Body:
    """Run the three measurements of an operator's processes, one after another, each in a namespace of its own."""
    for namespace in ("first", "steady", "burst", "direct"):
        cluster.kubectl("create", "namespace", namespace)
    create(cluster, "first", 5, rate=RATE, work=work)  # the watches of a new CRD take a second or two to begin
    steady_ms, _, _ = create(cluster, "steady", steady, rate=RATE, work=work)
    print(f"steady: {steady} jobs at {RATE:g} a second, p50 {quantile(steady_ms, 0.5)} ms", flush=True)
    time.sleep(SETTLE_SECONDS)
    before, cpu = writes(cluster), sum(map(cpu_ms, pids))
    burst_ms, burst_rate, watch = create(cluster, "burst", jobs, rate=None, work=work)
    print(f"burst: {jobs} jobs, {burst_rate:.1f} a second, p50 {quantile(burst_ms, 0.5)} ms", flush=True)
    settle(cluster)
    counted, cpu = writes(cluster) - before, sum(map(cpu_ms, pids)) - cpu
    show(counted, jobs)
    direct_rate = create_directly(cluster, "direct", watch.bodies)
    return {
        "jobs": jobs,
        "steady_p50_ms": quantile(steady_ms, 0.5),
        "steady_p99_ms": quantile(steady_ms, 0.99),
        "burst_jobs_per_s": round(burst_rate, 1),
        "direct_jobs_per_s": round(direct_rate, 1),
        "api_writes_per_job": round(sum(counted.values()) / jobs, 2),
        "cpu_ms_per_job": round(cpu / jobs, 2),
        "operator_rss_mb": round(sum(map(rss_mb, pids)), 1),
    }


def settle(cluster: LocalCluster) -> None:
    """Wait until nothing more is written: controllers lag behind a burst."""
    last: collections.Counter[str] = collections.Counter()
    while (now := writes(cluster)) != last:
        last = now
        time.sleep(SETTLE_SECONDS)


def show(counted: collections.Counter[str], jobs: int) -> None:
    """Print the writes a job by verb and kind, of which there is one for every tenth job at least."""
    for what, count in sorted(counted.items()):
        if count >= jobs / 10:
            print(f"  {what:40} {count / jobs:6.2f} a job", flush=True)


def live(cluster: LocalCluster, count: int) -> float:
    """Have pretended pods bring FineTuneJobs to their end; return the writes a job, everybody's counted."""
    cluster.kubectl("create", "namespace", "life")
    word, after = trained_message(), TRAINING_SECONDS
    PretendedPods(cluster, "life", prepared=prepared_message(), trained=word, after=after, are_bound=True)
    before = writes(cluster)
    create(cluster, "life", count, rate=RATE)
    deadline = time.time() + WAIT_SECONDS
    while any(phase != "Succeeded" for phase in phases(cluster, "life")):
        if time.time() > deadline:
            raise TimeoutError(f"jobs never ended: {collections.Counter(phases(cluster, 'life'))}")
        time.sleep(1.0)
    settle(cluster)
    counted = writes(cluster) - before
    print(f"life: {count} jobs from beginning to end, {counted.total() / count:.1f} writes a job", flush=True)
    show(counted, count)
    return counted.total() / count


def phases(cluster: LocalCluster, namespace: str) -> list[str]:
    """Return the phases of a namespace's FineTuneJobs."""
    listed = json.loads(Api(cluster).call("GET", FINETUNEJOBS.format(namespace)))
    return [item.get("status", {}).get("phase", "") for item in listed["items"]]


def measure_ours(*, jobs: int, steady: int, prepare_job: bool) -> Body:
    """Measure the operator on a control plane of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-operator-") as run_dir:
        cluster = LocalCluster(run_dir, backend="none", with_s3=False)
        with cluster, LocalOperator(cluster) as operator:
            print(f"operator in {NAMESPACE}, pid {operator.pid}", flush=True)
            PretendedNode(cluster)
            if not prepare_job:
                cluster.kubectl("apply", "-f", "-", input=json.dumps(IN_POD))
            result = measure(cluster, OURS, (operator.pid,), jobs=jobs, steady=steady)
            live(cluster, LIVES)
    return result


def main() -> None:
    """Measure, and print the JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500, help="FineTuneJobs of the burst")
    parser.add_argument("--steady", type=int, default=100, help=f"FineTuneJobs at {RATE:g} a second")
    parser.add_argument(
        "--prepare-job", action="store_true", help="have a Job of its own prepare, as without a profile"
    )
    options = parser.parse_args()
    print(json.dumps(measure_ours(jobs=options.jobs, steady=options.steady, prepare_job=options.prepare_job)))


if __name__ == "__main__":
    main()
