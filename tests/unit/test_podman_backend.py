"""How podman is told to run a container, from the pod's spec; tests/images has it run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dev.cluster.node.podman import run_arguments
from dev.cluster.node.sandbox.spec import ContainerSpec, Mount
from tests.unit.test_manifests_of_children import built


def arguments(container: dict[str, Any], pod: dict[str, Any] | None = None) -> list[str]:
    spec = ContainerSpec(
        parent=1,
        pod=1,
        status=1,
        staging="",
        command=["python", "-m", "finetune_trainer", "train"],
        environment={"KEY": "secret-value", "PATH": "/bin"},
        working_dir="/tmp",
        mounts=[Mount("/pods/1/volumes/work", "/work"), Mount("/pods/1/hosts", "/etc/hosts", True)],
        keep=[],
        hide=[],
    )
    container = {"image": "trainer:1", **container}
    return run_arguments(container, {"spec": pod or {}}, spec, hostname="bot-0", cluster="c", pidfile=Path("/pid"))


def test_a_pod_of_ours_is_run_as_restricted_as_it_is_made() -> None:
    pod = built()["spec"]["template"]["spec"]
    found = set(arguments(pod["containers"][0], pod))
    assert {
        "--user=10001:10001",
        "--group-add=10001",
        "--read-only",
        "--read-only-tmpfs=false",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    } <= found
    assert "--security-opt=seccomp=unconfined" not in found


@pytest.mark.parametrize(
    ("container", "pod", "expected"),
    [
        pytest.param({}, {}, ["--security-opt=seccomp=unconfined"], id="nothing said"),
        pytest.param(
            {"securityContext": {"runAsUser": 0}}, {"securityContext": {"runAsUser": 7}}, ["--user=0"], id="user"
        ),
        pytest.param({"securityContext": {"capabilities": {"add": ["KILL"]}}}, {}, ["--cap-add=KILL"], id="capability"),
        pytest.param(
            {"resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}}},
            {},
            ["--memory=67108864", "--memory-swap=67108864", "--cpus=1.5"],
            id="limits",
        ),
    ],
)
def test_what_a_spec_says_and_no_more(container, pod, expected) -> None:
    asked = [
        one for one in arguments(container, pod) if one.startswith(("--user", "--cap", "--sec", "--mem", "--cpus"))
    ]
    assert [one for one in asked if one in expected] == expected
    assert len(asked) == len(expected) + ("--security-opt=seccomp=unconfined" not in expected)


def test_values_of_variables_stand_in_no_list_of_processes() -> None:
    found = arguments({})
    assert {"--env=KEY", "--env=PATH=/bin"} <= set(found)
    assert not any("secret-value" in one for one in found)


def test_the_command_replaces_the_images_and_mounts_are_as_asked() -> None:
    found = arguments({})
    assert found[-2:] == ['--entrypoint=["python", "-m", "finetune_trainer", "train"]', "trainer:1"]
    assert "--mount=type=bind,source=/pods/1/hosts,destination=/etc/hosts,ro=true" in found
    assert "--mount=type=bind,source=/pods/1/volumes/work,destination=/work" in found
