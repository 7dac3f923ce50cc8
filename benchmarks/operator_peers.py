"""Our operator beside others: `python -m benchmarks.operator_peers [--trainer-manager FILE --jobset-manager FILE]`.

Each is measured as `benchmarks.operator_bench` measures ours, one after another, on a fresh control plane with its one
pretended node: an operator as a kopf tutorial has it (`benchmarks.plain_kopf`), Kubeflow Trainer with JobSet where
their binaries are given, and ours. The binaries are built from checkouts (`go build ./cmd/trainer-controller-manager`
of kubeflow/trainer, `go build .` of kubernetes-sigs/jobset), whose CRDs, webhooks and runtime are installed from
there. All run with their own defaults. Every line of JSON is one operator's; the last is ours.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks import plain_kopf
from benchmarks.measuring import Body
from benchmarks.operator_bench import Work, measure, measure_ours
from benchmarks.pretended import PretendedNode
from dev.cluster.local import KubectlError, LocalCluster
from dev.cluster.parts import Part, plain_environment
from dev.cluster.ports import free_ports

_START_SECONDS = 60.0
_CRDS = ("trainjobs", "clustertrainingruntimes", "trainingruntimes", "optimizationjobs")
_TRAINJOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs"
_TRAINJOB: Body = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "spec": {
        "runtimeRef": {"name": "torch-distributed"},
        "trainer": {"numNodes": 1, "command": ["python", "train.py"]},
    },
}
_PLAINJOB: Body = {
    "apiVersion": f"{plain_kopf.GROUP}/{plain_kopf.VERSION}",
    "kind": plain_kopf.KIND,
    "spec": {"image": "finetune-trainer:dev"},
}


@dataclass(frozen=True)
class Kubeflow:
    """What has to be there to run Kubeflow Trainer and JobSet."""

    trainer: Path
    jobset: Path
    trainer_source: Path
    jobset_source: Path


def measure_plain_kopf(*, jobs: int, steady: int) -> Body:
    """Measure the plain kopf operator."""
    with _cluster() as cluster:
        cluster.kubectl("apply", "-f", "-", input=json.dumps(plain_kopf.crd()))
        cluster.kubectl("wait", "--for=condition=Established", "crd", f"{plain_kopf.PLURAL}.{plain_kopf.GROUP}")
        with _running(cluster, "plain-kopf", [sys.executable, "-m", "benchmarks.plain_kopf"]) as part:
            time.sleep(5.0)  # it has no probe that says when it watches
            path = f"/apis/{plain_kopf.GROUP}/{plain_kopf.VERSION}/namespaces/{{}}/{plain_kopf.PLURAL}"
            return measure(cluster, Work(path, _PLAINJOB), (part.pid,), jobs=jobs, steady=steady)


def measure_kubeflow(kubeflow: Kubeflow, *, jobs: int, steady: int) -> Body:
    """Measure Kubeflow Trainer with JobSet."""
    with _cluster() as cluster:
        certificates, ca = _certificates(cluster)
        _install_crds(cluster, kubeflow)
        ports = free_ports(6)
        jobset = [str(kubeflow.jobset), f"--config={_config(cluster, 'jobset', ports[:3])}"]
        trainer = [str(kubeflow.trainer), f"--config={_config(cluster, 'trainer', ports[3:])}"]
        hooks = kubeflow.jobset_source / "config/components/webhook/manifests.yaml"
        with _running(cluster, "jobset", jobset, TMPDIR=certificates) as first:
            _wait_for(ports[0])
            _install_hooks(cluster, hooks, name="jobset", port=ports[0], ca=ca)
            with _running(cluster, "trainer", trainer, TMPDIR=certificates) as second:
                _wait_for(ports[3])
                hooks = kubeflow.trainer_source / "manifests/base/webhook/manifests.yaml"
                _install_hooks(cluster, hooks, name="trainer", port=ports[3], ca=ca)
                runtime = kubeflow.trainer_source / "manifests/base/runtimes/torch_distributed.yaml"
                _patiently(lambda: cluster.kubectl("apply", "--server-side", "-f", str(runtime)))
                work, pids = Work(_TRAINJOBS, _TRAINJOB), (first.pid, second.pid)
                return measure(cluster, work, pids, jobs=jobs, steady=steady)


def _install_crds(cluster: LocalCluster, kubeflow: Kubeflow) -> None:
    bases = kubeflow.trainer_source / "manifests/base/crds"
    files = [kubeflow.jobset_source / "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml"]
    files += [bases / f"trainer.kubeflow.org_{name}.yaml" for name in _CRDS]
    for file in files:
        cluster.kubectl("apply", "--server-side", "-f", str(file))
    for namespace in ("jobset-system", "kubeflow-system"):
        cluster.kubectl("create", "namespace", namespace)


def _install_hooks(cluster: LocalCluster, file: Path, *, name: str, port: int, ca: bytes) -> None:
    """Install webhooks that are called by URL: there is no network in which their Services would be served."""
    items = [item for item in yaml.safe_load_all(file.read_text()) if item]
    for item in items:
        item["metadata"]["name"] = f"{name}-{item['metadata']['name']}"
        for hook in item["webhooks"]:
            path = hook["clientConfig"].pop("service")["path"]
            url, bundle = f"https://127.0.0.1:{port}{path}", base64.b64encode(ca).decode()
            hook["clientConfig"] = {"url": url, "caBundle": bundle}
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(items))


def _certificates(cluster: LocalCluster) -> tuple[str, bytes]:
    """Put a serving certificate where controller-runtime looks; return the folder of temporary files, and the CA."""
    assert cluster.control_plane is not None
    authority = cluster.control_plane.authority
    pair = authority.serving("webhooks", addresses=("127.0.0.1",))
    folder = cluster.run_dir / "peers" / "k8s-webhook-server" / "serving-certs"
    folder.mkdir(parents=True)
    shutil.copy(pair.certificate, folder / "tls.crt")
    shutil.copy(pair.key, folder / "tls.key")
    return str(cluster.run_dir / "peers"), authority.certificate.read_bytes()


def _config(cluster: LocalCluster, name: str, ports: list[int]) -> Path:
    """Write a manager's configuration: its defaults, but for addresses, certificates and the election."""
    webhook, metrics, health = ports
    common = {
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
    }
    own: dict[str, Body] = {
        "jobset": {
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
            "internalCertManagement": {"enable": False},
            "webhook": {"port": webhook},
            "metrics": {"bindAddress": f"127.0.0.1:{metrics}"},
        },
        "trainer": {
            "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
            "certManagement": {"enable": False},
            "webhook": {"port": webhook, "host": "127.0.0.1"},
            "metrics": {"bindAddress": f"127.0.0.1:{metrics}", "secureServing": False},
        },
    }
    file = cluster.run_dir / f"{name}.yaml"
    file.write_text(json.dumps({**common, **own[name]}))
    return file


@contextmanager
def _running(cluster: LocalCluster, name: str, command: list[str], **env: str) -> Iterator[Part]:
    log = cluster.run_dir / f"{name}.log"
    part = Part(name, command, log=log, env=plain_environment(KUBECONFIG=str(cluster.kubeconfig), **env))
    part.start()
    try:
        yield part
        if not part.is_alive():
            raise part.failure("ended while it was measured")
    except TimeoutError as error:
        raise part.failure(str(error)) from error
    finally:
        part.stop()


@contextmanager
def _cluster() -> Iterator[LocalCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-peer-") as run_dir,
        LocalCluster(run_dir, backend="none", with_s3=False) as cluster,
    ):
        PretendedNode(cluster)
        yield cluster


def _wait_for(port: int) -> None:
    """Wait until something listens."""

    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    _patiently(connect)


def _patiently(step: Callable[[], object]) -> None:
    """Try again until it works: webhooks are served some time after their manager has begun."""
    end = time.time() + _START_SECONDS
    while True:
        try:
            step()
        except (OSError, KubectlError):
            if time.time() > end:
                raise
            time.sleep(0.5)
        else:
            return


def main() -> None:
    """Measure all that are there, ours last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500, help="custom resources of the burst")
    parser.add_argument("--steady", type=int, default=100, help="custom resources at 5 a second")
    parser.add_argument("--trainer-manager", type=Path, help="binary of Kubeflow Trainer's manager")
    parser.add_argument("--jobset-manager", type=Path, help="binary of JobSet's manager")
    parser.add_argument("--trainer-source", type=Path, help="checkout of kubeflow/trainer that it was built from")
    parser.add_argument("--jobset-source", type=Path, help="checkout of kubernetes-sigs/jobset that it was built from")
    options = parser.parse_args()
    count = {"jobs": options.jobs, "steady": options.steady}
    given = (options.trainer_manager, options.jobset_manager, options.trainer_source, options.jobset_source)
    if any(given) and not all(given):
        parser.error("Kubeflow Trainer needs both managers and both sources")
    print("plain kopf " + json.dumps(measure_plain_kopf(**count)), flush=True)
    if all(given):
        print("kubeflow trainer " + json.dumps(measure_kubeflow(Kubeflow(*given), **count)), flush=True)
    print(json.dumps(measure_ours(**count, prepare_job=False)))


if __name__ == "__main__":
    main()
