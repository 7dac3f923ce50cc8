"""`python -m finetune_trainer <stage>`, as a script in the data set's URI tells it.

`s3://fake/<stage>=<act>,...` where an act is `ok` (the default), `exit-<code>`, `run` (train until SIGTERM, then exit
with the code for preemption), `hang` (ignore SIGTERM), `post` (report progress, then run), `silent` (exit 0 and say
nothing), `gate` (write the outputs, and fail for a gate), `nap` (take four seconds), `once-<code>` (fail so in the
first attempt only).
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

MESSAGE = Path("/dev/termination-log")
CONFIG = json.loads(Path("/etc/finetune/config.json").read_text())
PREEMPTED = 60
GATE_FAILED = 24


def main(stage: str) -> int:
    act = dict(
        part.split("=")
        for part in CONFIG["spec"]["dataset"]["uri"].removeprefix("s3://fake/").split(",")
        if "=" in part
    )
    doing = act.get(stage, "ok")
    if doing.startswith("once-"):
        doing = "exit-" + doing.removeprefix("once-") if CONFIG["job"]["attempt"] == 1 else "ok"
    if doing.startswith("exit-"):
        return _fails(stage, int(doing.removeprefix("exit-")))
    if doing == "nap":
        time.sleep(4)
    if doing == "silent":
        return 0
    if doing == "gate":
        _says({"stage": "train", "exitCode": GATE_FAILED, "reason": "GateFailed", **_gated(_result(stage))})
        return GATE_FAILED
    if doing in ("run", "hang", "post"):
        _runs(doing)
    _says({"stage": stage if stage != "collect" else "train", "exitCode": 0, "reason": "Completed", **_result(stage)})
    return 0


def _fails(stage: str, code: int) -> int:
    _says(
        {
            "stage": stage,
            "exitCode": code,
            "reason": "Told",
            "message": f"told to end with {code}",
            "logTail": "the end",
        }
    )
    return code


def _runs(how: str) -> None:
    if how == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_fails("train", PREEMPTED)))
    if how == "post":
        _posts({"step": 7, "totalSteps": 20, "loss": 1.25, "checkpointStep": 5})
    time.sleep(600)


def _posts(metrics: dict[str, float]) -> None:
    post = {"trainerStatus": {"progressPercentage": 35, "estimatedRemainingSeconds": 130,
                              "metrics": [{"name": k, "value": str(v)} for k, v in metrics.items()]}}  # fmt: skip
    token = Path(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text()
    context = ssl.create_default_context(cafile=os.environ["KUBEFLOW_TRAINER_SERVER_CA_CERT"])
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    url = os.environ["KUBEFLOW_TRAINER_SERVER_URL"]
    for _ in range(50):
        try:
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(post).encode(), headers), context=context)
            return
        except OSError as error:
            print("post:", error, flush=True)
            time.sleep(0.2)


def _result(stage: str) -> dict[str, Any]:
    if stage == "prepare":
        counts = ("examples", "trainExamples", "validationExamples", "trainTokens", "lossTokens", "longest")
        none = dict.fromkeys(("truncated", "dropped", "duplicates"), 0)
        dataset = {"format": "messages", **dict(zip(counts, (10, 9, 1, 90, 30, 12), strict=True)), **none}
        resolved = {
            **{"learningRate": 2e-4, "totalSteps": 20, "batchSize": 16, "microBatchSize": 4, "maxSequenceLength": 64},
            **{"packing": False, "precision": "bfloat16", "gradientCheckpointing": False, "loss": "assistant"},
            **{"evalEverySteps": 2, "checkpointEverySteps": 2},
        }
        prepared = {"dataset": dataset, "estimate": {"perGpuBytes": 1000}, "resolved": resolved}
        return {"sha256": "a" * 64, "prepared": prepared}
    if stage == "fetch":
        return {}
    adapter = {"path": "adapter", "sha256": "b" * 64, "bytes": 1000}
    return {
        "sha256": "c" * 64,
        "trained": {"step": 20, "loss": 0.5, "checkpointStep": 20, "artifacts": {"adapter": adapter}},
    }


def _gated(result: dict[str, Any]) -> dict[str, Any]:
    change = {"change": 0.25, "low": 0.1, "high": 0.5, "verdict": "Better"}
    counts = dict.fromkeys(("pairs", "tuned", "base", "tie", "contradictory", "unclear", "unanswered"), 1)
    evaluation = {
        "base": {"loss": 2.5, "exactMatch": 0.0, "judge": 0.4},
        "tuned": {"loss": 1.5, "exactMatch": 0.25, "judge": 0.6},
        "comparisons": [{"metric": metric, **change} for metric in ("loss", "exactMatch", "forgetting", "judge")],
        "gates": [{"metric": "exactMatch", "min": 0.9, "relativeTo": "base", "value": 0.25, "passed": False}],
        "judge": counts,
        "warnings": ["evaluation.judge answered nonsense on 1 of 3."],
    }
    return {**result, "message": "a gate failed", "trained": {**result["trained"], "evaluation": evaluation}}


def _says(message: dict[str, Any]) -> None:
    MESSAGE.write_text(json.dumps(message))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
