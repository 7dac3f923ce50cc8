"""What a platform team has ready before users come: a store with models and data, credentials, a default profile.

The store holds all that the files of examples/ name; `stored` lists it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev.cluster.local import LocalCluster
from dev.cluster.s3 import S3Server
from dev.models import smollm2
from examples.data.files import FILES, write_all

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "quickstart.yaml"
MODEL_BUCKET, DATA_BUCKET, OUTPUT_BUCKET = "models", "datasets", "outputs"
MODEL, MODEL_WITH_TOOLS = "smollm2-135m-instruct", "smollm2-135m-tools"
CLAIM = "finetuning"
TEMPLATE = "chat_template.jinja"
SECRET = "object-store"  # noqa: S105 - a name
NAMESPACE = "default"


def stored() -> list[str]:
    """Return the URIs of what the store is filled with: model folders and data files."""
    models = [f"s3://{MODEL_BUCKET}/{name}" for name in (MODEL, MODEL_WITH_TOOLS)]
    return models + [f"s3://{DATA_BUCKET}/{name}" for name in FILES]


def fill_store(s3: S3Server, scratch: Path) -> int:
    """Put the examples' models and data where their manifests say; return the number of bytes."""
    data, model = scratch / "data", smollm2()
    client = s3.client()
    try:
        for bucket in (MODEL_BUCKET, DATA_BUCKET, OUTPUT_BUCKET):
            client.create_bucket(Bucket=bucket)
        for path in (written := write_all(data)):
            client.upload_file(str(path), DATA_BUCKET, path.relative_to(data).as_posix())
        files = sorted(path for path in model.iterdir() if path.is_file())
        for path in files:
            client.upload_file(str(path), MODEL_BUCKET, f"{MODEL}/{path.name}")
        _add_model_with_tools(client, [path.name for path in files])
    finally:
        client.close()
    return sum(path.stat().st_size for path in [*written, *files, *files])


def fill_claim(claims: Path, scratch: Path) -> None:
    """Lay the model and the data into a folder that stands for a volume, where pvc.yaml looks for them."""
    claim = claims / CLAIM
    (claim / MODEL_BUCKET).mkdir(parents=True, exist_ok=True)
    for link, target in ((claim / MODEL_BUCKET / MODEL, smollm2()), (claim / DATA_BUCKET, scratch / "data")):
        link.unlink(missing_ok=True)
        link.symlink_to(target.absolute())


def _add_model_with_tools(client: Any, files: list[str]) -> None:
    """Put the same weights beside the model, with a chat template that knows tools: SmolLM2-135M's own has none."""
    for name in files:
        source = {"Bucket": MODEL_BUCKET, "Key": f"{MODEL}/{name}"}
        client.copy_object(CopySource=source, Bucket=MODEL_BUCKET, Key=f"{MODEL_WITH_TOOLS}/{name}")
    template = Path(__file__).with_name("tools.jinja").read_bytes()
    client.put_object(Bucket=MODEL_BUCKET, Key=f"{MODEL_WITH_TOOLS}/{TEMPLATE}", Body=template)


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
