"""What many parts of the spec are made of: URIs, names, counts, Secrets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_contract.model import Model

Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Revision = Annotated[str, Field(min_length=1, max_length=128)] | None


class SecretRef(Model):
    """A Secret of the job's namespace, read as environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, HF_TOKEN, OPENAI_API_KEY.
    """

    name: Name
    """Name of the Secret."""
