"""The headless Service of a job with several training pods: it gives each of them a name, and nothing more.

One for all attempts: a pod's name has its attempt in it.
"""

from __future__ import annotations

from finetune_contract import paths
from finetune_operator.api import constants as c
from finetune_operator.api.views import JobView
from finetune_operator.builders.job import owner_reference
from finetune_operator.builders.names import service_name
from finetune_operator.builders.pod import Manifest


def build_service(job: JobView) -> Manifest:
    """Return the Service."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(job.name, job.uid),
            "namespace": job.namespace,
            "labels": {c.LABEL_MANAGED_BY: c.MANAGER, c.LABEL_JOB: job.name, c.LABEL_JOB_UID: job.uid},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "clusterIP": "None",
            "selector": {c.LABEL_JOB_UID: job.uid, c.LABEL_STAGE: "train"},
            # Pods look for each other before they are ready: they get ready by finding each other.
            "publishNotReadyAddresses": True,
            "ports": [{"name": "rendezvous", "port": paths.POD_PORT}],
        },
    }
