"""The commands about a cluster's jobs, by the real kubectl on the real API server; only the trainer is a fake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.jobs import RunningJob, make_manifest

pytestmark = pytest.mark.usefixtures("operator")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def finetune(cluster, namespace) -> Command:
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "KUBECACHEDIR": str(cluster.run_dir / "kubectl-cache"),
        "PATH": f"{cluster.binaries}:{os.environ['PATH']}",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "finetune_operator.cli", *words, "--namespace", namespace]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def start(cluster, namespace):
    return lambda script="", **spec: RunningJob(cluster, namespace, make_manifest("bot", script, **spec))


def test_a_job_is_suspended_resumed_run_again_and_cancelled_by_a_word_each(start, finetune: Command) -> None:
    job = start("train=post")
    job.until(lambda: job.status.get("progress", {}).get("step") == 7, what="progress")
    assert "step 7/20  35 %  loss 1.25  ETA 2m10s" in finetune("status", "bot").stdout

    assert finetune("suspend", "bot").stdout == "bot: suspending; `finetune resume` goes on\n"
    job.reaches("Suspended")
    assert finetune("resume", "bot").returncode == 0
    job.reaches("Running")
    assert finetune("rerun", "bot").returncode == 0
    job.until(lambda: job.status.get("run") == 2, what="second run")
    assert finetune("status").stdout.splitlines()[1].startswith("bot")
    assert finetune("cancel", "bot").returncode == 0
    job.until(lambda: job.kubectl("get", "ftj", "-o", "name") == "", what="its end")


def test_a_job_is_followed_to_its_end(start, finetune: Command) -> None:
    start()
    done = finetune("watch", "bot", "--interval", "0.2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Succeeded")


def test_logs_are_those_of_the_newest_pod(start, finetune: Command) -> None:
    job = start("prepare=exit-12")
    job.reaches("Failed")
    assert finetune("watch", "bot").returncode == 1
    assert finetune("logs", "bot").returncode == 0
    assert "has no pod" in finetune("logs", "bot", "--stage", "train").stderr


def test_a_manifest_is_compared_with_the_job_that_is_there(start, finetune: Command, tmp_path: Path) -> None:
    start("prepare=nap")
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_manifest("bot", "prepare=nap")))
    assert finetune("diff", str(path)).stdout == "nothing differs\n"
    path.write_text(json.dumps(make_manifest("bot", "prepare=nap", method="QLoRA")))
    done = finetune("diff", str(path))
    assert (done.returncode, done.stdout.splitlines()[:2]) == (1, ['- method: "LoRA"', '+ method: "QLoRA"'])


def test_what_the_server_refuses_is_said_in_its_words(finetune: Command) -> None:
    done = finetune("status", "nobody")
    assert (done.returncode, 'finetunejobs.finetuning.dev "nobody" not found' in done.stderr) == (1, True)
