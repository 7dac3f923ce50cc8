"""Greedy answers of a model to prompts: the same for base and tuned, and the same at every attempt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finetune_trainer.data.dataset import Asked
from finetune_trainer.failures import is_accelerator_out_of_memory
from finetune_trainer.logs import Pace, log
from finetune_trainer.parallel.distributed import stop_if_told, world

BATCH = 32
"""Most prompts that are answered together: a step for 32 takes little longer than one for 8."""
TOKENS = 8192
"""Most tokens of a batch with its answers, so that long prompts do not fill the memory with keys and values."""
LEAST = 8
"""Prompts that are answered together however long they are."""


def answers(
    model: Any, tokenizer: Any, asked: Sequence[Asked], *, max_new_tokens: int, max_prompt_tokens: int
) -> list[str]:
    """Return one answer a prompt, without special tokens and outer blanks; the ranks share the prompts."""
    encoded = [_encode(tokenizer, one)[-max_prompt_tokens:] for one in asked]
    batches = list(batched([len(ids) for ids in encoded], max_new_tokens=max_new_tokens))
    was_training, model_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    pace = Pace()

    def answer(chosen: list[int]) -> list[tuple[int, str]]:
        if pace.is_due:  # all that come before have been answered, by this rank or another
            log.info("answered %d of %d prompts", sum(map(len, batches[: batches.index(chosen)])), len(asked))
        texts = _answer_batch(model, tokenizer, [encoded[i] for i in chosen], max_new_tokens=max_new_tokens)
        return list(zip(chosen, texts, strict=True))

    try:
        with world().whole_weights():  # gathered once, not for each token of each answer
            answered = world().share(batches, answer, safe_point=stop_if_told)
    finally:
        model.config.use_cache = model_cache
        model.train(was_training)
    found = dict(pair for batch in answered for pair in batch)
    return [found[index] for index in range(len(asked))]


def batched(lengths: Sequence[int], *, max_new_tokens: int) -> Iterator[list[int]]:
    """Yield indices of prompts of these lengths in batches; similar lengths share one: the padding costs less."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        tokens = (len(batch) + 1) * (lengths[index] + max_new_tokens)
        if len(batch) == BATCH or (len(batch) >= LEAST and tokens > TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _encode(tokenizer: Any, asked: Asked) -> list[int]:
    if isinstance(asked.prompt, str):
        ids: list[int] = tokenizer(asked.prompt)["input_ids"]
        return ids
    text = tokenizer.apply_chat_template(asked.prompt, tools=asked.tools, add_generation_prompt=True, tokenize=False)
    # The template writes the special tokens itself.
    chat_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return chat_ids


def _answer_batch(model: Any, tokenizer: Any, prompts: list[list[int]], *, max_new_tokens: int) -> list[str]:
    try:
        return _generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
    except torch.OutOfMemoryError as error:
        # In step with others no process can go its own way.
        if not is_accelerator_out_of_memory(error) or len(prompts) == 1 or world().in_step:
            raise
    torch.cuda.empty_cache()
    middle = len(prompts) // 2
    return [
        text
        for half in (prompts[:middle], prompts[middle:])
        for text in _answer_batch(model, tokenizer, half, max_new_tokens=max_new_tokens)
    ]


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], *, max_new_tokens: int) -> list[str]:
    from transformers import GenerationConfig

    longest = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    padded = [[pad] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    # A configuration of our own: the model's may ask for sampling.
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=_stop_tokens(model, tokenizer)
    )
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=greedy,
        )
    texts: list[str] = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    from_model = model.generation_config.eos_token_id
    listed = from_model if isinstance(from_model, list) else [from_model]
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})
