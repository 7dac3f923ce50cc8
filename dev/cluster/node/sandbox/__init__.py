"""The inside of pods: what runs between the node and a container's command.

Plain standard library, because it starts with every pod and every container as
`python -I -S …/sandbox/__main__.py pod|container|exec SPEC`, which takes some 30 ms.

`pod` is the pause process: it holds the namespaces that the containers of a pod share
(mounts, hostname, IPC), and with them the tmpfs of its size-limited emptyDirs. `container`
joins it, makes a PID namespace and a private root of its own, and becomes the command.
`exec` runs a command inside a running container, for probes.

All needs namespaces only: with CAP_SYS_ADMIN directly, for an ordinary user inside a user
namespace. When the processes are gone, so is everything they mounted.
"""
