"""An operator as a kopf tutorial has it, to be measured beside ours: `python -m benchmarks.plain_kopf`.

A handler of creation makes a batch Job and writes the phase; what its Jobs do is written into the phase as well. It
validates, retries and resumes nothing, and never looks at a pod.
"""

from __future__ import annotations

import os
from typing import Any

import kopf
from kubernetes import client, config

GROUP, VERSION, PLURAL, KIND = "bench.finetuning.dev", "v1", "plainjobs", "PlainJob"
_LABEL = f"{GROUP}/job"
Body = dict[str, Any]


def crd() -> Body:
    """Return the CRD, without a schema."""
    names = {"plural": PLURAL, "singular": "plainjob", "kind": KIND}
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _job(name: str, spec: Body) -> Body:
    labels = {_LABEL: name}
    container = {"name": "train", "image": spec["image"], "command": ["python", "train.py"]}
    pod = {"restartPolicy": "Never", "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-job", "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


@kopf.on.startup()
def _start(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.peering.standalone = True
    config.load_kube_config(config_file=os.environ["KUBECONFIG"])


@kopf.on.create(GROUP, VERSION, PLURAL)
def _create(name: str, namespace: str | None, spec: kopf.Spec, patch: kopf.Patch, **_: Any) -> None:
    manifest = _job(name, dict(spec))
    kopf.adopt(manifest)
    client.BatchV1Api().create_namespaced_job(namespace, client.V1Job.from_dict(manifest))
    patch.status["phase"] = "Created"


@kopf.on.field("batch", "v1", "jobs", field="status.ready", labels={_LABEL: kopf.PRESENT})
def _runs(new: Any, meta: kopf.Meta, namespace: str | None, **_: Any) -> None:
    if new:
        _say(meta["labels"][_LABEL], namespace, phase="Running")


@kopf.on.field("batch", "v1", "jobs", field="status.succeeded", labels={_LABEL: kopf.PRESENT})
def _ended(new: Any, meta: kopf.Meta, namespace: str | None, **_: Any) -> None:
    if new:
        _say(meta["labels"][_LABEL], namespace, phase="Succeeded")


def _say(name: str, namespace: str | None, *, phase: str) -> None:
    body = {"status": {"phase": phase}}
    client.CustomObjectsApi().patch_namespaced_custom_object_status(GROUP, VERSION, namespace, PLURAL, name, body)


if __name__ == "__main__":
    kopf.run(clusterwide=True, standalone=True)
