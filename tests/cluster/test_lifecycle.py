"""Starting, ending, failing to start: as commands, as root and as anybody, several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster import LocalCluster, S3Server, StartError, build
from dev.cluster.build import COMPONENTS
from dev.cluster.state import Process, State
from tests.cluster.bench import Bench, container, eventually, mounted, pod, processes_that_mention
from tests.cluster.conftest import FIGURES

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "dev.cluster"]
AS_ANYBODY = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run folder; whatever still runs in it is ended, and named as a failure."""
    folder = tmp_path / "run"
    yield folder
    left = eventually_gone(folder)
    subprocess.run([*COMMAND, "down", "--run-dir", folder], cwd=ROOT, check=False, capture_output=True)
    assert not left


def eventually_gone(folder: Path) -> list[str]:
    """The processes that mention a folder, once those that are dying have died."""
    deadline = time.monotonic() + 5
    while (left := processes_that_mention(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_several_clusters_side_by_side_and_down_leaves_nothing(cluster: LocalCluster, run_dir: Path) -> None:
    started = time.monotonic()
    up = subprocess.run(
        [*COMMAND, "up", "--run-dir", run_dir, "--gpus-per-node=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    FIGURES.append(f"`up` with control plane, node and S3 server: {time.monotonic() - started:.1f} s")
    assert f"export KUBECONFIG='{run_dir}/kubeconfig'" in up.stdout
    state = State.read(run_dir)
    assert state
    assert state.ready
    assert state.server != cluster.server
    nodes = _kubectl(run_dir, "get", "nodes", "-o", "jsonpath={.items[*].status.capacity.nvidia\\.com/gpu}")
    assert nodes == "2"
    _kubectl(run_dir, "create", "namespace", "only-here")
    assert cluster.api.get("/api/v1/namespaces/only-here") is None
    status = subprocess.run(
        [*COMMAND, "status", "--run-dir", run_dir], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "is gone" not in status.stdout
    subprocess.run([*COMMAND, "down", "--run-dir", run_dir], cwd=ROOT, check=True, capture_output=True)
    assert not eventually_gone(run_dir)
    assert State.read(run_dir) is None


def test_killing_the_supervisor_ends_everything(run_dir: Path) -> None:
    subprocess.run([*COMMAND, "up", "--run-dir", run_dir], cwd=ROOT, capture_output=True, check=True)
    mark = f"86400.{time.monotonic_ns()}"
    _kubectl(run_dir, "run", "sleeper", "--image=any", "--restart=Never", "--", "sleep", mark)
    eventually(lambda: processes_that_mention(mark))
    state = State.read(run_dir)
    assert state
    os.kill(state.supervisor.pid, signal.SIGKILL)
    assert not eventually_gone(run_dir)
    assert not processes_that_mention(mark)
    down = subprocess.run(
        [*COMMAND, "down", "--run-dir", run_dir], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "ended the cluster" in down.stdout


@pytest.mark.parametrize("moment", ["while it starts", "while it runs"])
def test_ctrl_c_ends_everything(run_dir: Path, moment: str) -> None:
    with _foreground(run_dir) as process:
        log = run_dir / "control-plane" / "kube-apiserver.log"
        eventually(
            log.exists if moment == "while it starts" else lambda: (state := State.read(run_dir)) and state.ready
        )
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert "Traceback" not in said
    assert not eventually_gone(run_dir)


@pytest.mark.parametrize("broken", ["etcd", "kube-scheduler"])
def test_failed_start_names_the_part_and_shows_its_log(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = _binaries_with(run_dir.parent, broken=broken)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(folder))
    failed = subprocess.run(
        [*COMMAND, "up", "--run-dir", run_dir], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert f"{broken} ended while it was starting" in failed.stderr
    assert "boom: no luck today" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not eventually_gone(run_dir)


def test_one_cluster_a_folder(cluster: LocalCluster) -> None:
    with pytest.raises(StartError, match="another cluster runs in"):
        LocalCluster(cluster.run_dir, nodes=0).start()


def test_down_never_kills_a_process_that_has_a_reused_id(run_dir: Path) -> None:
    run_dir.mkdir()
    with subprocess.Popen(["sleep", "60"]) as innocent:
        State(Process("supervisor", innocent.pid, started=1)).write(run_dir)
        subprocess.run([*COMMAND, "down", "--run-dir", run_dir], cwd=ROOT, check=True, capture_output=True)
        assert innocent.poll() is None
        innocent.kill()


def test_works_as_an_ordinary_user(run_dir: Path) -> None:
    # A user namespace that maps us to somebody without any right: no root, no capabilities.
    if subprocess.run([*AS_ANYBODY, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let users make user namespaces")
    command = [*AS_ANYBODY, *COMMAND, "up", "--run-dir", str(run_dir), "--foreground"]
    with _foreground(run_dir, command) as process:
        eventually(lambda: (state := State.read(run_dir)) and state.ready)
        script = "id -u; touch /mnt-point/x /tmp/y; head -c 3000000 /dev/zero > /mnt-point/x || echo full"
        mount = mounted("small", "/mnt-point")
        manifest = pod(
            "anybody", container(script, **mount), volumes=[{"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}]
        )
        _kubectl(run_dir, "apply", "-f", "-", manifest=manifest)
        eventually(lambda: _kubectl(run_dir, "get", "pod", "anybody", "-o", "jsonpath={.status.phase}") == "Succeeded")
        said = _kubectl(run_dir, "logs", "anybody").splitlines()
        assert (said[0], said[-1]) == ("12345", "full")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert not Path("/mnt-point").exists()


def test_s3_server_alone(tmp_path: Path) -> None:
    started = time.monotonic()
    with S3Server(tmp_path) as s3:
        FIGURES.append(f"S3 server alone: {time.monotonic() - started:.1f} s")
        client = s3.client()
        for bucket in ("models", "data", "outputs"):
            s3.create_bucket(bucket)
            client.put_object(Bucket=bucket, Key="key", Body=b"value")
        refused = pytest.raises(client.exceptions.ClientError, match="PreconditionFailed")
        with refused:
            client.put_object(Bucket="models", Key="key", Body=b"other", IfNoneMatch="*")
        client.close()
    assert not eventually_gone(tmp_path)


def test_backend_none_has_no_nodes(run_dir: Path) -> None:
    with LocalCluster(run_dir, backend="none", with_s3=False) as cluster:
        assert cluster.api.get("/api/v1/nodes")["items"] == []
        bench = Bench(cluster, "default")
        bench.create("pods", pod("waits", container("true")))
        assert cluster.kubectl("get", "pod", "waits", "-o", "jsonpath={.status.phase}") == "Pending"


def _foreground(run_dir: Path, command: list[str] | None = None) -> "subprocess.Popen[str]":
    command = command or [*COMMAND, "up", "--run-dir", str(run_dir), "--foreground"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _kubectl(run_dir: Path, *arguments: str, manifest: object = None) -> str:
    command = [str(build.assets() / "kubectl"), f"--kubeconfig={run_dir}/kubeconfig", *arguments]
    text = json.dumps(manifest) if manifest else None
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _binaries_with(folder: Path, *, broken: str) -> Path:
    target = folder / "binaries"
    target.mkdir()
    for name in COMPONENTS:
        (target / name).symlink_to((build.assets() / name).resolve().with_name(name))
    (target / broken).unlink()
    (target / broken).write_text("#!/bin/sh\necho boom: no luck today >&2\nexit 3\n")
    (target / broken).chmod(0o755)
    return target
