"""The process node: what a kubelet is to Kubernetes, with pods as local processes.

One process serves any number of Nodes. Each is a user of its own (`system:node:<name>`)
under the Node authorizer and NodeRestriction, so that a right which a kubelet lacks is
lacking here too. What the control plane relies on from a node are sixteen rules; each has
a test of its own in tests/cluster.

Reading order: `agent` (a Node and its pods), `worker` (the life of one pod), `container`
(the life of one container), `status` (what is told about them, pure), `volumes` and `env`
(what containers are given), `sandbox` (what runs between us and their commands).

Differences from a kubelet that a reader of test results should know:

- An image is only a name. Every container sees this machine and this Python; a map gives
  an image variables and an entrypoint (see `images`).
- Containers keep the node's user: `runAsUser` is not followed. Capabilities are dropped as
  the pod asks, new privileges are always forbidden, the root is read-only where the pod
  says so. There is no seccomp profile and no CPU limit.
- Pods share the host's network. Each has an address of its own that maps to a loopback
  address (see `addresses`); names come from a hosts file (see `hosts`).
- Memory limits are watched, not reserved: see `memory`.
- Probes: readiness only. No `kubectl exec`, no lifecycle hooks, no sidecar containers, no
  timestamps in logs, Events only for what goes wrong.
"""
