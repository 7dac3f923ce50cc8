"""The tokenizer of a model folder; apart from the model, since prepare needs it and must not load torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError


def load_tokenizer(folder: Path) -> Any:
    """Load it. Raises MODEL_INVALID."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID, f"The model's tokenizer cannot be loaded: {str(error)[:500]}"
        ) from error
