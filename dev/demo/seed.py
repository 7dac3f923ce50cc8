"""What a platform team has ready before users come: an object store with a model, credentials, a default profile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dev.cluster.local import LocalCluster
from dev.cluster.s3 import S3Server
from dev.models import smollm2

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "quickstart.yaml"
MODEL_BUCKET, MODEL_PREFIX = "models", "smollm2-135m-instruct"
DATA_BUCKET, DATA_KEY = "datasets", "tickets.jsonl"
OUTPUT_BUCKET = "outputs"
SECRET = "object-store"  # noqa: S105 - a name
NAMESPACE = "default"


def fill_store(s3: S3Server, scratch: Path) -> int:
    """Put the quickstart's model and data where its manifest says; return the number of bytes."""
    data = scratch / DATA_KEY
    subprocess.run([sys.executable, str(ROOT / "examples" / "quickstart" / "make_data.py"), str(data)], check=True)
    model = smollm2()
    client = s3.client()
    try:
        for bucket in (MODEL_BUCKET, DATA_BUCKET, OUTPUT_BUCKET):
            client.create_bucket(Bucket=bucket)
        client.upload_file(str(data), DATA_BUCKET, DATA_KEY)
        files = sorted(path for path in model.iterdir() if path.is_file())
        for path in files:
            client.upload_file(str(path), MODEL_BUCKET, f"{MODEL_PREFIX}/{path.name}")
    finally:
        client.close()
    return sum(path.stat().st_size for path in [data, *files])


def set_up_platform(cluster: LocalCluster) -> None:
    """Give jobs the store's address and credentials by a default profile and a Secret: quickstart.yaml has neither."""
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(_secret(cluster.s3.env)))
    cluster.kubectl("apply", "-f", "-", input=json.dumps(_profile(cluster.s3)))


def _secret(env: Mapping[str, str]) -> dict[str, object]:
    kept = {name: value for name, value in env.items() if "KEY" in name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": kept}


def _profile(s3: S3Server) -> dict[str, object]:
    metadata = {"name": "local", "annotations": {"finetuning.dev/is-default-profile": "true"}}
    storage = {"endpoint": s3.endpoint, "region": s3.env["AWS_REGION"], "secretName": SECRET}
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": metadata,
        "spec": {"storage": storage},
    }
