"""One run of the train stage: what every step of it needs, fetched and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_trainer.data.dataset import Data
from finetune_trainer.fetch import FetchedModel
from finetune_trainer.reporting.figures import GpuClock
from finetune_trainer.storage import Store


@dataclass(frozen=True, slots=True)
class Run:
    """What every step of the stage needs."""

    config: RunConfig
    prepared: Prepared
    store: Store
    folder: Path
    data: Data
    fetched: FetchedModel
    tokenizer: Any
    gpu_clock: GpuClock
