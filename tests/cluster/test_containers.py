"""What containers are given, what they are kept from, and that nothing of them stays."""

import base64
import hashlib
import os
import tempfile
import time
from pathlib import Path

from tests.cluster.bench import (
    Bench,
    Manifest,
    container,
    eventually,
    is_running,
    mounted,
    pod,
    processes_that_mention,
    state,
)

ALLOWED = {
    "HOME",
    "HOSTNAME",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "KUBERNETES_SERVICE_PORT_HTTPS",
    "LANG",
    "PATH",
    "PWD",
}


def test_nothing_of_the_hosts_environment_leaks(bench: Bench) -> None:
    names = {line.partition("=")[0] for line in bench.output("env").splitlines()}
    assert names <= ALLOWED


def test_environment_from_everywhere(bench: Bench) -> None:
    bench.create("secrets", {"metadata": {"name": "keys"}, "stringData": {"A": "secret a", "B": "secret b"}})
    bench.create("configmaps", {"metadata": {"name": "settings"}, "data": {"C": "map c"}})
    spec = {
        "envFrom": [
            {"secretRef": {"name": "keys"}, "prefix": "OUTPUT_"},
            {"configMapRef": {"name": "settings"}},
            {"secretRef": {"name": "absent", "optional": True}},
        ],
        "env": [
            {"name": "C", "value": "$(OUTPUT_A), not $(NOWHERE), $$(OUTPUT_A)"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "B"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "NOTE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['a/b']"}}},
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "x", "optional": True}}},
        ],
        "resources": {"limits": {"memory": "1Gi"}},
    }
    said = bench.output("env", container=spec, metadata={"annotations": {"a/b": "noted"}}, nodeName="node-0")
    values = dict(line.split("=", 1) for line in said.splitlines())
    assert values["C"] == "secret a, not $(NOWHERE), $(OUTPUT_A)"
    picked = {name: values[name] for name in ("OUTPUT_B", "KEY", "NODE", "NOTE", "MEMORY")}
    assert picked == {"OUTPUT_B": "secret b", "KEY": "secret b", "NODE": "node-0", "NOTE": "noted", "MEMORY": "1024"}
    assert "NONE" not in values


def test_volumes_of_every_kind(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text("host")
    bench.create("secrets", {"metadata": {"name": "s"}, "stringData": {"k": "secret"}})
    bench.create("configmaps", {"metadata": {"name": "c"}, "data": {"k": "map"}})
    annotation = {"fieldRef": {"fieldPath": "metadata.annotations['run']"}}
    volumes: dict[str, Manifest] = {
        "s": {"secret": {"secretName": "s"}},
        "c": {"configMap": {"name": "c", "items": [{"key": "k", "path": "deep/er"}]}},
        "d": {"downwardAPI": {"items": [{"path": "run.json", **annotation}]}},
        "p": {"projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}},
        "h": {"hostPath": {"path": str(tmp_path)}},
    }
    mounts = [
        {"name": "s", "mountPath": "/etc/secret/k", "subPath": "k"},
        {"name": "c", "mountPath": "/opt/no/such/folder"},
        {"name": "d", "mountPath": "/run/config", "readOnly": True},
        {"name": "p", "mountPath": "/p"},
        {"name": "h", "mountPath": "/var/data", "subPath": "below"},
    ]
    script = (
        "cat /etc/secret/k /opt/no/such/folder/deep/er /run/config/run.json /p/k /var/data/file;"
        "echo back > /var/data/back; touch /run/config/x 2>/dev/null || echo ' read-only'"
    )
    said = bench.output(
        script,
        container={"volumeMounts": mounts},
        metadata={"annotations": {"run": '{"steps": 1}'}},
        volumes=[{"name": name, **source} for name, source in volumes.items()],
    )
    assert said == 'secretmap{"steps": 1}maphost read-only\n'
    assert (tmp_path / "below" / "back").read_text() == "back\n"
    assert not Path("/opt/no").exists()


def test_token_of_an_audience_is_accepted_for_it_alone(bench: Bench) -> None:
    source = {"serviceAccountToken": {"path": "token", "audience": "finetuning.dev/abc", "expirationSeconds": 600}}
    volume = {"name": "token", "projected": {"sources": [source]}}
    mount = mounted("token", "/var/run/progress")
    manifest = pod("token", container("cat /var/run/progress/token; sleep 60", **mount), volumes=[volume])
    bench.create("pods", manifest)
    token = eventually(lambda: is_running(bench.get("pods", "token")) and bench.logs("token"))
    right, wrong = (_review(bench, str(token), audience=name) for name in ("finetuning.dev/abc", "other"))
    assert right["authenticated"]
    assert right["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["token"]
    assert not wrong.get("authenticated")


def test_in_cluster_access_works(bench: Bench) -> None:
    script = """
import json, os, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
url = "https://%(KUBERNETES_SERVICE_HOST)s:%(KUBERNETES_SERVICE_PORT)s/api" % os.environ
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(folder + "token").read()})
print(json.load(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=folder + "ca.crt")))["kind"])
"""
    assert bench.output(["python", "-c", script]) == "APIVersions\n"


def test_sized_empty_dir_runs_full_for_real(bench: Bench) -> None:
    volume = {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}
    mount = mounted("small", "/small")
    full = container(
        "head -c 3000000 /dev/zero > /small/file", terminationMessagePolicy="FallbackToLogsOnError", **mount
    )
    ended = bench.run(pod("full", full, volumes=[volume]))
    assert "No space left on device" in state(ended)["terminated"]["message"]


def test_root_is_private_and_read_only_where_asked(bench: Bench) -> None:
    mark = f"/usr/mark-{time.monotonic_ns()}"
    writes = f"touch {mark} /tmp/mark && ls /tmp"
    security = {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    refused = bench.run(pod("ro", container(writes, securityContext=security)))
    assert state(refused)["terminated"]["exitCode"] != 0
    assert "Read-only file system" in bench.logs("ro")
    with tempfile.NamedTemporaryFile(dir="/tmp") as host:
        if os.geteuid() == 0:  # as anybody, /usr belongs to somebody else anyway
            seen = bench.output(writes).split()
            assert "mark" in seen
            assert Path(host.name).name not in seen
    assert not Path(mark).exists()
    assert not Path("/tmp/mark").exists()


def test_capabilities_and_privileges_are_given_up(bench: Bench) -> None:
    security: Manifest = {"capabilities": {"drop": ["ALL"]}}
    said = bench.output("grep -E 'CapEff|NoNewPrivs' /proc/self/status", container={"securityContext": security})
    assert said.split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "1"]


def test_the_clusters_own_files_are_hidden(bench: Bench) -> None:
    assert bench.output(f"ls {bench.cluster.run_dir} 2>/dev/null || true") == ""


def test_nothing_a_container_started_outlives_it(bench: Bench) -> None:
    mark = f"86400.{time.monotonic_ns()}"
    bench.run(pod("parent", container(f"setsid sleep {mark} & sleep 0.2; exit 0")))
    assert not processes_that_mention(mark)


def test_claims_are_folders(bench: Bench, tmp_path: Path) -> None:
    name = f"volume-{bench.namespace}"
    claim = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = {
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": str(tmp_path)},
            "claimRef": {"namespace": bench.namespace, "name": "claim"},
        },
    }
    bench.cluster.api.post("/api/v1/persistentvolumes", volume)
    bench.create("persistentvolumeclaims", {"metadata": {"name": "claim"}, "spec": {**claim, "volumeName": name}})
    bench.output(
        "echo kept > /claim/file",
        container=mounted("claim", "/claim"),
        volumes=[{"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}}],
    )
    assert (tmp_path / "file").read_text() == "kept\n"


def test_secret_bytes_arrive_unchanged(bench: Bench) -> None:
    data = bytes(range(256))
    bench.create("secrets", {"metadata": {"name": "raw"}, "data": {"raw": base64.b64encode(data).decode()}})
    said = bench.output(
        "sha256sum /raw/raw | cut -c1-64",
        container=mounted("raw", "/raw"),
        volumes=[{"name": "raw", "secret": {"secretName": "raw"}}],
    )
    assert said.strip() == hashlib.sha256(data).hexdigest()


def _review(bench: Bench, token: str, *, audience: str) -> Manifest:
    request = {"spec": {"token": token, "audiences": [audience]}}
    answer = bench.cluster.api.post("/apis/authentication.k8s.io/v1/tokenreviews", request)
    status: Manifest = answer["status"]
    return status
