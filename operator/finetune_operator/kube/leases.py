"""The Lease by which replicas agree on a leader."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_operator.kube.client import Body, KubeClient
from finetune_operator.policy.election import LEASE_SECONDS, Lease
from finetune_operator.runtime.gateway import ConflictError


class KubeLeaseStore:
    """Implements `runtime.leader.LeaseStore`.

    Written by PUT alone, which also creates a Lease: so all rights can be bound to its one name. What fields others
    put into it stay.
    """

    def __init__(self, api: KubeClient, *, namespace: str, name: str) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
        self._last: Body = {}

    async def read(self) -> Lease:
        """Return the Lease; one of nobody where there is none."""
        self._last = await self._api.get(self._path) or {}
        return _parsed(self._last)

    async def write(self, lease: Lease) -> Lease:
        """Replace or create the Lease. Raises ConflictError if somebody else has meanwhile."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = self._last.get("spec") or {}
        taken = lease.holder != old.get("holderIdentity")
        spec = {
            **old,
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": int(lease.seconds),
            "leaseTransitions": lease.transitions,
            "renewTime": now,
            "acquireTime": now if taken or not old.get("acquireTime") else old["acquireTime"],
        }
        meta = {**self._last.get("metadata", {}), "name": self._name, "namespace": self._namespace}
        meta.pop("managedFields", None)
        if lease.version:
            meta["resourceVersion"] = lease.version
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
        written = await self._api.put(self._path, body)
        if written is None:
            raise ConflictError(f"Lease {self._name} was deleted meanwhile")
        self._last = written
        return _parsed(written)


def _parsed(body: Body) -> Lease:
    spec = body.get("spec") or {}
    return Lease(
        holder=spec.get("holderIdentity") or "",
        seconds=spec.get("leaseDurationSeconds") or LEASE_SECONDS,
        transitions=spec.get("leaseTransitions") or 0,
        version=body.get("metadata", {}).get("resourceVersion", ""),
    )
