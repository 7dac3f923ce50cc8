"""Starting, ending, failing to start: as commands, as root and as anybody, several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dev.cluster import LocalCluster, S3Server, StartError, build
from dev.cluster.build import COMPONENTS
from dev.cluster.state import Process, State
from tests.cluster.bench import container, eventually, mounted, pod, processes_that_mention
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
    _run("down", "--run-dir", folder)
    assert not left


def eventually_gone(folder: Path) -> list[str]:
    """The processes that mention a folder, once those that are dying have died."""
    deadline = time.monotonic() + 5
    while (left := processes_that_mention(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_several_clusters_side_by_side_and_down_leaves_nothing(cluster: LocalCluster, run_dir: Path) -> None:
    up = _run("up", "--run-dir", run_dir, "--backend=none")
    assert f"export KUBECONFIG='{run_dir}/kubeconfig'" in up.stdout
    state = State.read(run_dir)
    assert state
    assert state.ready
    assert state.server != cluster.server
    assert _kubectl(run_dir, "get", "nodes", "-o", "name") == ""
    _kubectl(run_dir, "create", "namespace", "only-here")
    assert cluster.api.get("/api/v1/namespaces/only-here") is None
    assert "is gone" not in _run("status", "--run-dir", run_dir).stdout
    _run("down", "--run-dir", run_dir)
    assert not eventually_gone(run_dir)
    assert State.read(run_dir) is None
    ports = json.loads((run_dir / "s3" / "ports.json").read_text()).values()
    assert not [port for port in ports if list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))]


def test_killing_the_supervisor_ends_everything(run_dir: Path) -> None:
    started = time.monotonic()
    _run("up", "--run-dir", run_dir)
    FIGURES.append(f"`up` with control plane, node and S3 server: {time.monotonic() - started:.1f} s")
    mark = f"86400.{time.monotonic_ns()}"
    _kubectl(run_dir, "run", "sleeper", "--image=any", "--restart=Never", "--", "sleep", mark)
    eventually(lambda: processes_that_mention(mark))
    state = State.read(run_dir)
    assert state
    os.kill(state.supervisor.pid, signal.SIGKILL)
    assert not eventually_gone(run_dir)
    assert not processes_that_mention(mark)
    assert "ended the cluster" in _run("down", "--run-dir", run_dir).stdout


@pytest.mark.parametrize("how", ["Ctrl-C", "down"])
def test_a_start_can_be_ended(run_dir: Path, how: str) -> None:
    with _foreground(run_dir) as process:
        eventually((run_dir / "control-plane" / "kube-apiserver.log").exists)
        if how == "down":
            _run("down", "--run-dir", run_dir)
        else:
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
    failed = _run("up", "--run-dir", run_dir, "--backend=none", expected=1)
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
        _run("down", "--run-dir", run_dir)
        assert innocent.poll() is None
        innocent.kill()


def test_works_as_an_ordinary_user_and_ctrl_c_ends_everything(run_dir: Path) -> None:
    # Root becomes somebody without any right, by a user namespace: no root in it, no capabilities.
    user, prefix = ("12345", AS_ANYBODY) if os.geteuid() == 0 else (str(os.geteuid()), [])
    with _foreground(run_dir, *prefix) as process:
        eventually(lambda: (state := State.read(run_dir)) and state.ready)
        gpus = _kubectl(run_dir, "get", "nodes", "-o", "jsonpath={.items[*].status.capacity.nvidia\\.com/gpu}")
        assert gpus == "2"
        script = "id -u; touch /mnt-point/x /tmp/y; head -c 3000000 /dev/zero > /mnt-point/x || echo full"
        volume = {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}
        manifest = pod("anybody", container(script, **mounted("small", "/mnt-point")), volumes=[volume])
        _kubectl(run_dir, "apply", "-f", "-", manifest=manifest)
        eventually(lambda: _kubectl(run_dir, "get", "pod", "anybody", "-o", "jsonpath={.status.phase}") == "Succeeded")
        said = _kubectl(run_dir, "logs", "anybody").splitlines()
        assert (said[0], said[-1]) == (user, "full")
        process.send_signal(signal.SIGINT)
        ended, _ = process.communicate(timeout=30)
    assert "Traceback" not in ended
    assert not eventually_gone(run_dir)
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


def _run(*arguments: str | Path, expected: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    return done


@contextmanager
def _foreground(run_dir: Path, *prefix: str) -> Iterator["subprocess.Popen[str]"]:
    command = [*COMMAND, "up", "--run-dir", str(run_dir), "--foreground", "--gpus-per-node=2"]
    with subprocess.Popen(
        [*prefix, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # one that has not ended by now would never


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
