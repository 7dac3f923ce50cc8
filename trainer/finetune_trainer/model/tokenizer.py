"""The tokenizer of a model folder; apart from the model, since prepare needs it and must not load torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.model.vocabulary import add_tokens


def load_tokenizer(folder: Path, new_tokens: Sequence[str] = ()) -> Any:
    """Load it, and add model.newTokens. Raises MODEL_INVALID, CONFIG_INVALID."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID, f"The model's tokenizer cannot be loaded: {str(error)[:500]}"
        ) from error
    add_tokens(tokenizer, new_tokens)
    return tokenizer
