"""A node that is lost with a training pod on it, and comes back."""

from __future__ import annotations

import pytest


@pytest.mark.long
def test_a_node_that_is_lost_hangs_no_job_and_its_zombie_hurts_none(start, cluster, proxy) -> None:
    """16 s until the node counts as lost, 30 s of toleration, grace and 60 s: then the attempt is given up."""
    job = start("train=run", lifecycle={"gracePeriodSeconds": 1, "retries": {"max": 0}})
    job.reaches("Running")
    (pod,) = [pod for pod in job.children("pods") if pod["status"]["phase"] == "Running"]
    node = cluster.node(pod["spec"]["nodeName"])
    node.lose()
    try:
        job.until(lambda: job.status.get("attempt") == 2, what="next attempt", seconds=180)
        assert job.status["restarts"] == {"failures": 0, "disruptions": 1}
        assert job.status["lastFailure"]["class"] == "Disrupted"
    finally:
        node.recover()
    job.until(lambda: job.status.get("phase") == "Running", what="second attempt at work", seconds=120)
    living = [pod for pod in job.children("pods") if pod["status"]["phase"] == "Running"]
    assert [pod["metadata"]["labels"]["finetuning.dev/attempt"] for pod in living] == ["2"]
