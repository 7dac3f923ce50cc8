"""Where training pods post: the leader's address, in an EndpointSlice of the status server's Service.

The Service has no selector, so that a replica can be ready without being the one that takes posts. The slice is owned
by the leader's pod: an address never outlives its pod.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass

from finetune_operator.api.constants import MANAGER
from finetune_operator.kube.client import Body, KubeClient
from finetune_operator.runtime.gateway import ApiError

log = logging.getLogger(__name__)
_AGAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where this replica's status server is reached, and the pod that it runs in."""

    ip: str
    port: int
    namespace: str
    pod: str
    pod_uid: str

    def slice(self) -> Body:
        """Return the EndpointSlice that says so. Its family cannot be changed, so it is part of the name."""
        family = f"IPv{ipaddress.ip_address(self.ip).version}"
        owner = {"apiVersion": "v1", "kind": "Pod", "name": self.pod, "uid": self.pod_uid}
        labels = {"kubernetes.io/service-name": MANAGER, "endpointslice.kubernetes.io/managed-by": MANAGER}
        meta: Body = {"name": f"{MANAGER}-{family.lower()}", "namespace": self.namespace, "labels": labels}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "ownerReferences": [owner]} if self.pod_uid else meta,
            "addressType": family,
            "ports": [{"name": "status", "port": self.port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [self.ip], "conditions": {"ready": True}}],
        }


async def keep_published(api: KubeClient, address: Address) -> None:
    """Say where posts go, again and again, as long as this replica leads. Results never depend on it."""
    body = address.slice()
    path = f"/apis/discovery.k8s.io/v1/namespaces/{address.namespace}/endpointslices/{body['metadata']['name']}"
    while True:
        try:
            await api.apply(path, body, manager=MANAGER)
        except ApiError as error:
            log.warning("progress will not arrive: %s", error)
        await asyncio.sleep(_AGAIN_SECONDS)
