"""How good a model is on the held-out part, and the base beside the tuned one.

The loss is the mean over all tokens that count, not over batches, measured without packing. Whatever the base model
says is kept in storage: a later attempt does not ask it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.model import Model
from finetune_contract.outcome import Scores
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_trainer.dataset import IGNORED, Data, Question, Row, batches_by_length
from finetune_trainer.distributed import stop_if_told, world
from finetune_trainer.errors import NotFoundError
from finetune_trainer.generate import answers
from finetune_trainer.logs import log
from finetune_trainer.model import computing
from finetune_trainer.storage import Store

BASE_RESULTS = "evaluation-base.json"
_MAX_EXPONENT = 700.0
"""exp() of more is no finite number."""


class Measured(Model):
    """One model's results."""

    scores: Scores
    answers: tuple[str, ...] = ()
    """To the held-out questions."""
    samples: tuple[str, ...] = ()
    """To evaluation.samples.prompts."""


class BaseResults(Model):
    """evaluation-base.json: what the base model said, and to which questions."""

    config_hash: str
    prepared_sha256: str | None = None
    measured: Measured


def held_out_loss(
    model: Any, rows: Sequence[Row], *, prepared: Prepared, safe_point: Callable[[], None] = stop_if_told
) -> float:
    """Return the mean loss a counted token; `safe_point` is called between batches and may raise."""
    resolved = prepared.resolved
    batches = list(batches_by_length(rows, max_tokens=resolved.micro_batch_size * resolved.max_sequence_length))

    def summed(batch: Sequence[Row]) -> tuple[float, int]:
        inputs = _padded(batch, pad_token_id=prepared.pad_token_id, device=model.device)
        # TRL's head: log-probabilities of the labels without the logits of the whole vocabulary.
        output = model(**inputs, fused_lm_head=True, use_cache=False)
        return -output.log_probs.double().sum().item(), int(output.label_mask.sum())

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), computing(resolved.precision):
            sums = world().share(batches, summed, safe_point=safe_point)
    finally:
        model.train(was_training)
    return sum(loss for loss, _ in sums) / max(sum(counted for _, counted in sums), 1)


def measure(model: Any, tokenizer: Any, *, data: Data, prepared: Prepared, config: RunConfig) -> Measured:
    """Measure a model as the spec asks for."""
    settings = config.spec.evaluation
    loss = held_out_loss(model, data.validation, prepared=prepared)
    asked = data.questions[: settings.max_examples] if "exactMatch" in settings.metrics else []
    samples = [sample_prompt(text, data=data, tokenizer=tokenizer) for text in settings.samples.prompts]
    with computing(prepared.resolved.precision):
        given = answers(
            model,
            tokenizer,
            [question.prompt for question in asked] + samples,
            max_new_tokens=settings.max_new_tokens,
            max_prompt_tokens=prepared.resolved.max_sequence_length,
        )
    scores = Scores(
        loss=loss,
        perplexity=math.exp(min(loss, _MAX_EXPONENT)),
        exact_match=_exact_match(asked, given) if asked else None,
    )
    return Measured(scores=scores, answers=tuple(given[: len(asked)]), samples=tuple(given[len(asked) :]))


def measure_base(
    model: Any, tokenizer: Any, *, data: Data, prepared: Prepared, config: RunConfig, store: Store
) -> Measured:
    """Return what the untrained model says: from storage where an earlier attempt has asked it already."""
    uri = paths.join(config.run_uri, BASE_RESULTS)
    if (known := world().from_first(lambda: _known_base(uri, config, store))) is not None:
        return known
    log.info("evaluating the base model on %d held-out examples", len(data.validation))
    measured = measure(model, tokenizer, data=data, prepared=prepared, config=config)
    results = BaseResults(config_hash=config.config_hash, prepared_sha256=config.prepared_sha256, measured=measured)
    if world().first:
        store.write(uri, results.to_json().encode())
    return measured


def sample_prompt(text: str, *, data: Data, tokenizer: Any) -> str | list[dict[str, str]]:
    """Return a prompt of the spec as the held-out ones are: a user's turn where the data are chats."""
    chats = bool(data.questions) and not isinstance(data.questions[0].prompt, str)
    return [{"role": "user", "content": text}] if chats and tokenizer.chat_template else text


def _known_base(uri: str, config: RunConfig, store: Store) -> Measured | None:
    try:
        results = BaseResults.model_validate_json(store.read(uri))
    except (NotFoundError, ValidationError):
        return None
    same = (results.config_hash, results.prepared_sha256) == (config.config_hash, config.prepared_sha256)
    return results.measured if same else None


def _exact_match(asked: Sequence[Question], given: Sequence[str]) -> float:
    right = sum(question.answer.strip() == text.strip() for question, text in zip(asked, given, strict=False))
    return right / len(asked)


def _padded(batch: Sequence[Row], *, pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)

    def column(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in batch], device=device)

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
    return {
        "input_ids": column("input_ids", pad_token_id),
        "labels": column("labels", IGNORED),
        "attention_mask": torch.tensor(mask, device=device),
    }
