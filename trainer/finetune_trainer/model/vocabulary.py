"""New tokens: into the tokenizer before the data is read, and into the embeddings before training.

Each starts as the mean of all embeddings (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models"): a random start far from the others would be generated everywhere before it is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError


def add_tokens(tokenizer: Any, new: Sequence[str]) -> None:
    """Add tokens to a tokenizer. Raises CONFIG_INVALID for one that it knows."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    for token in new:
        if token in known:
            raise TrainerError(
                ExitCode.CONFIG_INVALID, f"model.newTokens: the tokenizer has {token!r} already: remove it."
            )
        if not token.strip():
            raise TrainerError(ExitCode.CONFIG_INVALID, "model.newTokens: a token of blanks cannot be told from text.")
        known[token] = -1
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new])


def ids_of(tokenizer: Any, new: Sequence[str]) -> list[int]:
    """Return the new tokens' ids."""
    return [int(number) for number in tokenizer.convert_tokens_to_ids(list(new))]


def grow_embeddings(model: Any, ids: Sequence[int]) -> None:
    """Make room for ids, in a vocabulary that may have spare rows, and start them as the mean of all others."""
    import torch

    if not ids:
        return
    first, needed = min(ids), max(ids) + 1
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for tensor in (layer.weight, getattr(layer, "bias", None)):
                if tensor is not None:
                    tensor[list(ids)] = tensor[:first].float().mean(0).to(tensor.dtype)


def embedding_names(model: Any) -> tuple[str, str]:
    """Return the names of the input embeddings and of the output head."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    first, second = (next(name for name, module in model.named_modules() if module is layer) for layer in layers)
    return first, second


def has_tied_embeddings(model: Any) -> bool:
    """Whether the output head is the embedding."""
    return bool(model.get_input_embeddings().weight is model.get_output_embeddings().weight)
