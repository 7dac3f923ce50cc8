"""How good a model is on the held-out part, and the base beside the tuned one.

The loss is the mean over all tokens that count, not over batches, measured without packing. Whatever a model
says is kept in storage: a later attempt does not ask it again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from pydantic import ValidationError
from pydantic.alias_generators import to_snake

from finetune_contract import paths
from finetune_contract.evaluation import Scores
from finetune_contract.model import Model
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_trainer.data.dataset import IGNORED, Asked, Data, Row, batches_by_length
from finetune_trainer.errors import NotFoundError
from finetune_trainer.evaluation.generate import answers
from finetune_trainer.evaluation.measured import ExampleLoss, Measured
from finetune_trainer.evaluation.metrics import scores_of
from finetune_trainer.logs import log
from finetune_trainer.model.build import computing, measuring
from finetune_trainer.parallel.distributed import stop_if_told, world
from finetune_trainer.storage import Store

BASE_RESULTS = "evaluation-base.json"
TUNED_RESULTS = "evaluation-tuned.json"
_MAX_EXPONENT = 700.0
"""exp() of more is no finite number."""


class Results(Model):
    """evaluation-base.json and evaluation-tuned.json: what a model said, and to which questions."""

    config_hash: str
    prepared_sha256: str | None = None
    general: str | None = None
    """sha256 of the general text's tokens."""
    weights: str = ""
    """Of the tuned model."""
    measured: Measured


def held_out_loss(
    model: Any, rows: Sequence[Row], *, prepared: Prepared, safe_point: Callable[[], None] = stop_if_told
) -> float:
    """Return the mean loss a counted token; `safe_point` is called between batches and may raise."""
    return mean_loss(example_losses(model, rows, prepared=prepared, safe_point=safe_point))


def mean_loss(losses: Sequence[ExampleLoss]) -> float:
    """Return the mean over all counted tokens."""
    return math.fsum(loss for loss, _ in losses) / max(sum(tokens for _, tokens in losses), 1)


def example_losses(
    model: Any, rows: Sequence[Row], *, prepared: Prepared, safe_point: Callable[[], None] = stop_if_told
) -> list[ExampleLoss]:
    """Return each row's loss, in the order of the rows; the ranks share the batches.

    `safe_point` is called between batches and may raise.
    """
    resolved = prepared.resolved
    batches = list(batches_by_length(rows, max_tokens=resolved.micro_batch_size * resolved.max_sequence_length))

    def losses_of(batch: Sequence[Row]) -> list[ExampleLoss]:
        inputs = _padded(batch, pad_token_id=prepared.pad_token_id, device=model.device)
        # TRL's head: log-probabilities of the labels without the logits of the whole vocabulary.
        output = model(**inputs, fused_lm_head=True, use_cache=False)
        sums, counts = -output.log_probs.double().sum(dim=1), output.label_mask.sum(dim=1)
        return list(zip(sums.tolist(), counts.tolist(), strict=True))

    with measuring(model, resolved.precision):
        measured = world().share(batches, losses_of, safe_point=safe_point)
    found = {
        id(row): loss
        for batch, losses in zip(batches, measured, strict=True)
        for row, loss in zip(batch, losses, strict=True)
    }
    return [found[id(row)] for row in rows]


def measure(model: Any, tokenizer: Any, *, data: Data, prepared: Prepared, config: RunConfig) -> Measured:
    """Measure a model as the spec asks for."""
    settings = config.spec.evaluation
    losses = example_losses(model, data.validation, prepared=prepared)
    general = _finite(example_losses(model, _within_limit(data.general, model), prepared=prepared))
    asked = data.questions[: settings.max_examples] if settings.metrics or settings.judge else []
    samples = [sample(text, data=data, tokenizer=tokenizer) for text in settings.samples.prompts]
    with computing(prepared.resolved.precision):
        given = answers(
            model,
            tokenizer,
            [*asked, *samples],
            max_new_tokens=settings.max_new_tokens,
            max_prompt_tokens=prepared.resolved.max_sequence_length,
        )
    # A pattern that is searched within a time limit may find on one machine what it does not on another.
    scores = world().from_first(lambda: scores_of(asked, given[: len(asked)], settings))
    return Measured(
        scores=Scores(
            loss=mean_loss(losses),
            perplexity=_perplexity(losses),
            general_perplexity=_perplexity(general) if general else None,
            **{to_snake(metric): fmean(each) for metric, each in scores.items()},
        ),
        losses=tuple(losses),
        general_losses=tuple(general),
        answer_scores={metric.value: tuple(each) for metric, each in scores.items()},
        answers=tuple(given[: len(asked)]),
        samples=tuple(given[len(asked) :]),
    )


def measure_base(
    model: Any, tokenizer: Any, *, data: Data, prepared: Prepared, config: RunConfig, store: Store
) -> Measured:
    """Return what the untrained model says: from storage where an earlier attempt has asked it already."""
    uri = paths.join(config.run_uri, BASE_RESULTS)
    if (known := world().from_first(lambda: _known(uri, data, config=config, store=store))) is not None:
        return known
    log.info("evaluating the base model on %d held-out examples", len(data.validation))
    measured = measure(model, tokenizer, data=data, prepared=prepared, config=config)
    _keep(uri, measured, data, config=config, store=store)
    return measured


def measure_tuned(
    model: Any, tokenizer: Any, *, data: Data, prepared: Prepared, config: RunConfig, store: Store, weights: str | None
) -> Measured:
    """Return what the tuned model says: from storage where an attempt that had the same weights has asked it already.

    `weights` names them: equal text, equal weights; None if they have no name, and then nothing is kept.
    """
    uri = paths.join(config.run_uri, TUNED_RESULTS)
    known = world().from_first(
        lambda: _known(uri, data, config=config, store=store, weights=weights) if weights else None
    )
    if known is not None:
        return known
    log.info("evaluating the tuned model on %d held-out examples", len(data.validation))
    measured = measure(model, tokenizer, data=data, prepared=prepared, config=config)
    if weights:
        _keep(uri, measured, data, config=config, store=store, weights=weights)
    return measured


def sample(text: str, *, data: Data, tokenizer: Any) -> Asked:
    """Return a prompt of the spec as the held-out ones are: a user's turn where the data are chats."""
    chats = bool(data.questions) and not isinstance(data.questions[0].prompt, str)
    return Asked([{"role": "user", "content": text}] if chats and tokenizer.chat_template else text)


def _keep(uri: str, measured: Measured, data: Data, *, config: RunConfig, store: Store, weights: str = "") -> None:
    if not world().first:
        return
    results = Results(
        config_hash=config.config_hash,
        prepared_sha256=config.prepared_sha256,
        general=_digest(data.general),
        weights=weights,
        measured=measured,
    )
    store.write(uri, results.to_json().encode())


def _known(uri: str, data: Data, *, config: RunConfig, store: Store, weights: str = "") -> Measured | None:
    try:
        results = Results.model_validate_json(store.read(uri))
    except (NotFoundError, ValidationError):
        return None
    found = (results.config_hash, results.prepared_sha256, results.general, results.weights)
    same = found == (config.config_hash, config.prepared_sha256, _digest(data.general), weights)
    return results.measured if same else None


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256(json.dumps([row["input_ids"] for row in rows]).encode()).hexdigest()


def _perplexity(losses: Sequence[ExampleLoss]) -> float:
    return math.exp(min(mean_loss(losses), _MAX_EXPONENT))


def _finite(losses: list[ExampleLoss]) -> list[ExampleLoss]:
    """Return losses, or none of them if one is no number: what is only looked at must not lose the model."""
    if all(math.isfinite(loss) for loss, _ in losses):
        return losses
    if world().first:
        log.warning("the loss on general text is not finite: forgetting is not measured")
    return []


def _within_limit(rows: Sequence[Row], model: Any) -> list[Row]:
    """Return rows cut to what the model holds."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return [{name: tokens[:limit] for name, tokens in row.items()} for row in rows]


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
