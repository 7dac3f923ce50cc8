"""Warnings: what an expert would say on looking at the data and the settings. They stop nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_contract.spec import Method

FEW = 200
ENOUGH = "aim for 500 to 2000"
SMALL = 2000
MANY_EPOCHS = 3
TRUNCATED_SHARE = 0.01
HELD_OUT_OFF = 2.0

# Where the loss usually falls and does not spike.
RATES: dict[Method, tuple[float, float]] = {
    Method.LORA: (1e-5, 5e-4),
    Method.QLORA: (1e-5, 5e-4),
    Method.FULL: (1e-6, 5e-5),
}


@dataclass(frozen=True, slots=True)
class Observed:
    """What the warnings are about."""

    examples: int
    train_examples: int
    held_out: int
    fraction: float
    duplicates: int
    truncated: int
    dropped: int
    longest: int
    max_sequence_length: int
    system_prompts: int
    with_special_tokens: int
    stop_token: str | None
    """The template's end-of-turn token, if generation does not stop at it by itself."""
    one_prompt: bool
    method: Method
    learning_rate: float
    epochs: float


def warnings(seen: Observed) -> tuple[str, ...]:
    """Return the warnings, most important first."""
    return tuple(_all(seen))


def _all(seen: Observed) -> Iterator[str]:
    yield from _about_learning(seen)
    yield from _about_data(seen)
    yield from _about_split(seen)


def _about_learning(seen: Observed) -> Iterator[str]:
    low, high = RATES[seen.method]
    if seen.with_special_tokens:
        yield (
            f"{seen.with_special_tokens} examples contain the chat template's own tokens in their text: data that was "
            "formatted before is formatted twice; give plain contents."
        )
    if not low <= seen.learning_rate <= high:
        word = "high" if seen.learning_rate > high else "low"
        yield f"learningRate {seen.learning_rate:g} is {word} for {seen.method}: {low:g} to {high:g} is usual."
    if seen.examples < FEW:
        yield f"Only {seen.examples} examples: below {FEW} a model memorises instead of learning; {ENOUGH}."
    if seen.epochs > MANY_EPOCHS and seen.train_examples < SMALL:
        yield (
            f"{seen.epochs:.3g} epochs over {seen.train_examples} examples: small data overfits beyond "
            f"{MANY_EPOCHS}; lower epochs or maxSteps and watch the held-out loss."
        )
    if seen.stop_token:
        yield (
            f"The chat template ends turns with {seen.stop_token}, at which the model's generation does not stop: "
            "add it to eos_token_id in its generation_config.json, or answers may run on."
        )


def _about_data(seen: Observed) -> Iterator[str]:
    if seen.dropped:
        yield (
            f"{seen.dropped} of {seen.examples} examples were left out: at maxSequenceLength "
            f"{seen.max_sequence_length} nothing of their answers remains; raise it or shorten the prompts."
        )
    if seen.truncated > TRUNCATED_SHARE * seen.examples:
        yield (
            f"{seen.truncated} of {seen.examples} examples ({seen.truncated / seen.examples:.0%}) are cut at "
            f"maxSequenceLength {seen.max_sequence_length}: raise it (the longest has {seen.longest} tokens) or "
            "shorten them."
        )
    if seen.duplicates:
        yield f"{seen.duplicates} of {seen.examples} examples equal an earlier one: remove them, they count twice."
    if seen.system_prompts > 1:
        yield (
            f"{seen.system_prompts} different system prompts (none counts as one): use one for all examples, the one "
            "that the model will be served with."
        )


def _about_split(seen: Observed) -> Iterator[str]:
    wanted = seen.fraction * seen.examples
    if seen.one_prompt:
        yield "All examples have the same prompt: the held-out part was chosen by whole examples instead."
    elif seen.held_out > max(HELD_OUT_OFF * wanted, wanted + 2):
        yield (
            f"{seen.held_out} of {seen.examples} examples are held out, since many share a prompt and those stay "
            "together: more varied prompts give an evener split."
        )
