"""How the operator stands up to many jobs: `python -m benchmarks.operator_scale [--present 10000] [--running 1000]`.

A real control plane without a node, the shipped manifests and rights. Two measurements:

present: with that many finished FineTuneJobs there, the memory of an operator that has just started, the time from its
start to the first batch Job of a new FineTuneJob, and the latency at 5 jobs a second, beside the same in an empty
cluster. The finished jobs are copies of one that the operator itself has brought to its end.

running: that many jobs whose pods pretend to run (`benchmarks.pretended`) and post progress every two seconds, each
with its own token: status writes a job and 10 seconds, and posts that were taken.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from benchmarks.measuring import Api, quantile, rss_mb, writes
from benchmarks.operator_bench import FINETUNEJOBS, JOB, RATE, create
from benchmarks.pretended import PretendedPods
from dev.cluster.local import LocalCluster
from dev.operator import LocalOperator
from finetune_operator.api.constants import progress_audience
from finetune_operator.settings import progress_path
from tests.support.builders import prepared_message, trained_message

Body = dict[str, Any]
CLIENTS = 4
POST_EVERY = 2.0
WARM_UP_SECONDS = 20.0


def present(cluster: LocalCluster, operator: LocalOperator, *, jobs: int, steady: int) -> Body:
    """Measure with finished jobs there, and before they are."""
    for namespace in ("first", "empty", "finished", "new", "full"):
        cluster.kubectl("create", "namespace", namespace)
    create(cluster, "first", 5, rate=RATE)
    empty, _, _ = create(cluster, "empty", steady, rate=RATE)
    status = finished_status(cluster)
    operator.stop()
    fill(cluster, status, jobs=jobs)
    began = time.time()
    operator.start()
    ready = time.time() - began
    _, _, watch = create(cluster, "new", 1, rate=None)
    caught_up = max(watch.seen.values()) - began
    full, _, _ = create(cluster, "full", steady, rate=RATE)
    return {
        "present_jobs": jobs,
        "ready_s": round(ready, 1),
        "caught_up_s": round(caught_up, 1),
        "rss_mb": round(rss_mb(operator.pid), 1),
        "empty_p50_ms": quantile(empty, 0.5),
        "empty_p99_ms": quantile(empty, 0.99),
        "full_p50_ms": quantile(full, 0.5),
        "full_p99_ms": quantile(full, 0.99),
    }


def finished_status(cluster: LocalCluster) -> Body:
    """Have the operator bring one job to its end; return its status."""
    cluster.kubectl("create", "namespace", "pattern")
    PretendedPods(cluster, "pattern", prepared=prepared_message(), trained=trained_message())
    api, path = Api(cluster), f"{FINETUNEJOBS.format('pattern')}/bench0"
    create(cluster, "pattern", 1, rate=None)
    for _ in range(300):
        status: Body = json.loads(api.call("GET", path)).get("status", {})
        if status.get("completionTime"):
            return status
        time.sleep(0.2)
    raise TimeoutError(f"the pattern of a finished job never ended: {status}")


def fill(cluster: LocalCluster, status: Body, *, jobs: int) -> None:
    """Create finished jobs, several at a time, while no operator runs."""

    def some(client: int) -> None:
        api, path = Api(cluster), FINETUNEJOBS.format("finished")
        for number in range(client, jobs, CLIENTS):
            name = f"done-{number}"
            api.call("POST", path, {**JOB, "metadata": {"name": name}})
            api.call("PATCH", f"{path}/{name}/status", {"status": status})

    began = time.time()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(some, range(CLIENTS)))
    print(f"{jobs} finished jobs made in {time.time() - began:.0f} s", flush=True)


def running(cluster: LocalCluster, operator: LocalOperator, *, jobs: int, seconds: float) -> Body:
    """Measure with jobs whose pods post."""
    cluster.kubectl("create", "namespace", "running")
    pods = PretendedPods(cluster, "running", prepared=prepared_message(), trained=None)
    create(cluster, "running", jobs, rate=None)
    wait_for(lambda: len(pods.training) >= jobs, f"training pods of {jobs} jobs", seconds=600)
    posters = Posters(cluster, operator, pods.training)
    print(f"{jobs} jobs run", flush=True)
    posters.post_for(WARM_UP_SECONDS)
    posters.answers.clear()
    before, began = writes(cluster), time.time()
    posters.post_for(seconds)
    counted, took = writes(cluster) - before, time.time() - began
    status = counted["PATCH finetunejobs/status"]
    return {
        "running_jobs": jobs,
        "seconds": round(took),
        "posts_taken": posters.answers[http.client.OK],
        "posts_refused": posters.answers.total() - posters.answers[http.client.OK],
        "status_writes_per_job_and_10_s": round(status / jobs / took * 10, 2),
        "rss_mb": round(rss_mb(operator.pid), 1),
    }


class Posters:
    """The posting side of many pods: every pod has a token of its own, and every few an address."""

    def __init__(self, cluster: LocalCluster, operator: LocalOperator, pods: dict[str, str]) -> None:
        self.answers: Counter[int] = Counter()
        self._port = int(operator.status_url.rpartition(":")[2])
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        api = Api(cluster)
        self._tokens = {job: _token(api, job, pod) for job, pod in pods.items()}

    def post_for(self, seconds: float) -> None:
        """Have every pod post again and again."""
        jobs, end = list(self._tokens), time.time() + seconds

        def some(client: int) -> None:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self._port, context=self._context, source_address=(f"127.0.1.{client + 1}", 0)
            )
            step = 0
            while (began := time.time()) < end:
                step += 1
                for job in jobs[client :: CLIENTS * 10]:
                    self._post(connection, job, step)
                time.sleep(max(0.0, began + POST_EVERY - time.time()))

        with ThreadPoolExecutor(CLIENTS * 10) as pool:
            list(pool.map(some, range(CLIENTS * 10)))

    def _post(self, connection: http.client.HTTPSConnection, job: str, step: int) -> None:
        metrics = [{"name": "step", "value": str(step)}, {"name": "loss", "value": str(1 / step)}]
        body = {"trainerStatus": {"progressPercentage": step % 100, "metrics": metrics}}
        headers = {"Authorization": f"Bearer {self._tokens[job]}", "Content-Type": "application/json"}
        connection.request("POST", progress_path("running", job), json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        self.answers[answer.status] += 1


def _token(api: Api, job: str, pod: str) -> str:
    """Return a token as the kubelet projects it: bound to the pod, for the job's audience."""
    uid = json.loads(api.call("GET", f"{FINETUNEJOBS.format('running')}/{job}"))["metadata"]["uid"]
    spec = {"audiences": [progress_audience(uid)], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod}}
    path = "/api/v1/namespaces/running/serviceaccounts/default/token"
    answer = api.call("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
    token: str = json.loads(answer)["status"]["token"]
    return token


def wait_for(holds: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Wait until something holds. Raises TimeoutError, saying what."""
    end = time.time() + seconds
    while not holds():
        if time.time() > end:
            raise TimeoutError(f"{what} never came")
        time.sleep(0.1)


def main() -> None:
    """Measure both, and print the JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--present", type=int, default=10_000, help="finished FineTuneJobs that are there")
    parser.add_argument("--steady", type=int, default=100, help=f"FineTuneJobs at {RATE:g} a second")
    parser.add_argument("--running", type=int, default=1000, help="FineTuneJobs that run")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long those post")
    options = parser.parse_args()
    result: Body = {}
    if options.present:
        with _cluster() as cluster, LocalOperator(cluster) as operator:
            result |= present(cluster, operator, jobs=options.present, steady=options.steady)
    if options.running:
        with _cluster() as cluster, LocalOperator(cluster) as operator:
            result |= running(cluster, operator, jobs=options.running, seconds=options.seconds)
    print(json.dumps(result))


@contextmanager
def _cluster() -> Iterator[LocalCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="operator-scale-") as run_dir,
        LocalCluster(run_dir, backend="none", with_s3=False) as cluster,
    ):
        yield cluster


if __name__ == "__main__":
    main()
