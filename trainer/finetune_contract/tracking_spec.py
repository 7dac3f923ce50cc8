"""Where the run's figures go beside status and report: `spec.tracking`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_contract.fields import SecretRef
from finetune_contract.model import Model


class Mlflow(Model):
    """An MLflow tracking server."""

    tracking_uri: Annotated[str, Field(max_length=512, pattern=r"^https?://[^@/?#]+(/[^@?#]*)?$")]
    """URL of the server, as https://mlflow.example.com. Credentials come from tracking.secretRef."""
    experiment: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Experiment that the run belongs to; the job's name when absent. It is made where there is none."""


class Wandb(Model):
    """Weights & Biases."""

    project: Annotated[str, Field(min_length=1, max_length=128)]
    """Project that the run belongs to."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """User or team; the default one of the API key when absent."""
    mode: Literal["online", "offline"] = "online"
    """offline writes the run to wandb/ beside the outputs, for `wandb sync`, and needs neither network nor key."""


class TensorBoard(Model):
    """Event files for TensorBoard, in tensorboard/ beside the outputs."""


class Tracking(Model):
    """Where the run's figures go beside status and report. A tracker that fails or hangs never costs the run."""

    mlflow: Mlflow | None = None
    """An MLflow tracking server."""
    wandb: Wandb | None = None
    """Weights & Biases."""
    tensorboard: TensorBoard | None = None
    """Event files for TensorBoard: write {} to have them."""
    secret_ref: SecretRef | None = None
    """Credentials of the trackers."""
