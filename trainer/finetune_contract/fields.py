"""What many parts of the spec are made of: URIs, names, counts, Secrets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_contract.model import Model

Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Revision = Annotated[str, Field(min_length=1, max_length=128)] | None


class ConfigMapKeyRef(Model):
    """A key of a ConfigMap of the job's namespace."""

    name: Name
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key of its data."""


class SecretRef(Model):
    """A Secret of the job's namespace, read as environment variables. For s3://: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL. For gs://: GOOGLE_SERVICE_ACCOUNT_KEY (the
    key file's JSON). For az://: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or
    AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET. For hf://: HF_TOKEN. For tracking:
    MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN, WANDB_API_KEY. For a judge: OPENAI_API_KEY.
    """

    name: Name
    """Name of the Secret."""
