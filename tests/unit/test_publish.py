"""Where the leader says that it takes posts."""

import pytest

from finetune_operator.kube.publish import Address


@pytest.mark.parametrize(
    ("ip", "name", "family"),
    [("10.1.2.3", "finetune-operator-ipv4", "IPv4"), ("fd00::7", "finetune-operator-ipv6", "IPv6")],
)
def test_the_address_is_of_the_service_and_goes_with_the_pod(ip: str, name: str, family: str) -> None:
    found = Address(ip, 8443, "finetune-system", pod="operator-0", pod_uid="uid-of-the-pod").slice()
    assert (found["metadata"]["name"], found["addressType"]) == (name, family)
    assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "finetune-operator"
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == ["uid-of-the-pod"]
    assert found["endpoints"][0]["addresses"] == [ip]
    assert found["ports"] == [{"name": "status", "port": 8443, "protocol": "TCP"}]


def test_a_process_that_is_no_pod_owns_nothing() -> None:
    assert "ownerReferences" not in Address("10.1.2.3", 8443, "x", pod="laptop", pod_uid="").slice()["metadata"]
