"""Warnings: what an expert would say on looking at the data and the settings. They stop nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetune_contract.spec import Method, Objective

FEW = 200
ENOUGH = "aim for 500 to 2000"
SMALL = 2000
MANY_EPOCHS = 3
TRUNCATED_SHARE = 0.01
HELD_OUT_OFF = 2.0
NEAR_SHARE = 0.05
LABEL_SHARE = 0.8
LABEL_EXAMPLES = 50

# Where the loss usually falls and does not spike.
RATES: dict[Method, tuple[float, float]] = {
    Method.LORA: (1e-5, 5e-4),
    Method.QLORA: (1e-5, 5e-4),
    Method.FULL: (1e-6, 5e-5),
}


SHARES: dict[Objective, float] = {Objective.SFT: 1.0, Objective.DPO: 0.05, Objective.ORPO: 0.5, Objective.KTO: 0.1}
"""Of those rates, with other objectives."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the warnings are about."""

    examples: int
    train_examples: int
    held_out: int
    fraction: float | None
    """None where the validation set was given."""
    duplicates: int
    system_prompts: int
    one_prompt: bool
    method: Method
    learning_rate: float
    epochs: float
    near_duplicates: int = 0
    leaked: int = 0
    damaged: int = 0
    damages: Mapping[str, int] = field(default_factory=dict)
    """Kinds of damage, and in how many examples."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Answers and how often they are given, where they are few and short."""
    truncated: int = 0
    dropped: int = 0
    longest: int = 0
    max_sequence_length: int = 0
    with_special_tokens: int = 0
    stop_token: str | None = None
    """The template's end-of-turn token, if generation does not stop at it by itself."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Parts of conversations that the chat template drops, and of how many."""
    objective: Objective = Objective.SFT


def warnings(seen: Observed) -> tuple[str, ...]:
    """Return the warnings, most important first."""
    return tuple(_all(seen))


def _all(seen: Observed) -> Iterator[str]:
    yield from _about_template(seen)
    yield from _about_learning(seen)
    yield from _about_lengths(seen)
    yield from _about_data(seen)
    yield from _about_split(seen)


def _about_learning(seen: Observed) -> Iterator[str]:
    low, high = (bound * SHARES[seen.objective] for bound in RATES[seen.method])
    if not low <= seen.learning_rate <= high:
        word = "high" if seen.learning_rate > high else "low"
        method = f"{seen.method}{_with(seen.objective)}"
        yield f"learningRate {seen.learning_rate:g} is {word} for {method}: {low:g} to {high:g} is usual."
    if seen.examples < FEW:
        yield f"Only {seen.examples} examples: below {FEW} a model memorises instead of learning; {ENOUGH}."
    if seen.epochs > MANY_EPOCHS and seen.train_examples < SMALL:
        yield (
            f"{seen.epochs:.3g} epochs over {seen.train_examples} examples: small data overfits beyond "
            f"{MANY_EPOCHS}; lower epochs or maxSteps and watch the held-out loss."
        )


def _about_template(seen: Observed) -> Iterator[str]:
    if seen.with_special_tokens:
        yield (
            f"{seen.with_special_tokens} examples contain the chat template's own tokens in their text: data that was "
            "formatted before is formatted twice; give plain contents."
        )
    if count := seen.left_out.get("system"):
        yield (
            f"The chat template leaves out the system prompt of {count} examples: write it into the first user turn, "
            "or take a model whose template has system turns."
        )
    if count := seen.left_out.get("tools"):
        yield (
            f"The chat template leaves out tools or their answers in {count} examples: take a model whose template "
            "knows tools, or write them into the turns."
        )
    if seen.stop_token:
        yield (
            f"The chat template ends turns with {seen.stop_token}, at which the model's generation does not stop: "
            "add it to eos_token_id in its generation_config.json, or answers may run on."
        )


def _with(objective: Objective) -> str:
    return "" if objective is Objective.SFT else f" with {objective}"


def _about_lengths(seen: Observed) -> Iterator[str]:
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


def _about_data(seen: Observed) -> Iterator[str]:
    if seen.damaged:
        kinds = ", ".join(f"{kind} in {count}" for kind, count in seen.damages.items())
        yield (
            f"{seen.damaged} of {seen.examples} examples have damaged letters ({kinds}): the files were decoded "
            "wrongly once; write them again as UTF-8, or the model learns to write so."
        )
    if seen.duplicates:
        yield f"{seen.duplicates} of {seen.examples} examples equal an earlier one: remove them, they count twice."
    if seen.near_duplicates > NEAR_SHARE * seen.examples:
        yield (
            f"About {seen.near_duplicates} of {seen.examples} examples nearly equal an earlier one: vary or remove "
            "them, the model learns them by heart and the held-out loss looks better than it is."
        )
    yield from _about_labels(seen)
    if seen.system_prompts > 1:
        yield (
            f"{seen.system_prompts} different system prompts (none counts as one): use one for all examples, the one "
            "that the model will be served with."
        )


def _about_labels(seen: Observed) -> Iterator[str]:
    total = sum(seen.labels.values())
    if len(seen.labels) < 2 or total < LABEL_EXAMPLES:  # noqa: PLR2004 - one answer to all is no choice
        return
    label, count = max(seen.labels.items(), key=lambda item: item[1])
    if count > LABEL_SHARE * total:
        yield (
            f"{count / total:.0%} of the answers are {label!r}: give the other {len(seen.labels) - 1} more examples, "
            "or the model learns to answer so whatever is asked."
        )


def _about_split(seen: Observed) -> Iterator[str]:
    if seen.leaked:
        yield (
            f"{seen.leaked} of {seen.examples} examples have a prompt that stands in the validation set: they are not "
            "trained on; remove them from one of the two."
        )
    if seen.fraction is None:
        return
    wanted = seen.fraction * seen.examples
    if seen.one_prompt:
        yield "All examples have the same prompt: the held-out part was chosen by whole examples instead."
    elif seen.held_out > max(HELD_OUT_OFF * wanted, wanted + 2):
        yield (
            f"{seen.held_out} of {seen.examples} examples are held out, since many share a prompt and those stay "
            "together: more varied prompts give an evener split."
        )
