"""From data files to shards: the two passes, and the cut once maxSequenceLength is settled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_contract.resolve import DataFacts, choose_loss
from finetune_contract.spec import TuningSpec
from finetune_trainer.data.advice import Observed
from finetune_trainer.data.held_out import HeldOut
from finetune_trainer.data.lengths import Lengths, measure
from finetune_trainer.data.observe import observe
from finetune_trainer.data.parts import Part
from finetune_trainer.data.plan import Plan, choose_plan
from finetune_trainer.data.record import DataRecord
from finetune_trainer.data.second_pass import Tokenised, tokenise
from finetune_trainer.data.shards import Cut, write_shards
from finetune_trainer.data.survey import Survey, survey
from finetune_trainer.data.tokenize import Encoder
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log

HELD_OUT = "held-out.jsonl"


@dataclass(frozen=True, slots=True)
class Uncut:
    """The data after both passes."""

    survey: Survey
    plan: Plan
    tokens: Tokenised
    lengths: Lengths
    stop_token: str | None
    """The end-of-turn token, if generation does not stop at it by itself."""

    @property
    def facts(self) -> DataFacts:
        """What the choice of maxSequenceLength needs to know."""
        return DataFacts(self.survey.format, self.lengths.longest, self.lengths.most, self.lengths.mean)


def read_data(
    spec: TuningSpec, parts: list[Part], *, tokenizer: Any, stops: set[int], scratch: Path, held_out: Path
) -> Uncut:
    """Check, split and tokenise; write the examples that are held out for answers. Raises what bad data raise."""
    with phase("data") as said:
        seen = survey(parts)
        source = spec.dataset
        plan = choose_plan(seen, parts, fraction=source.validation.fraction, max_samples=source.max_samples)
        said.append(f"{seen.examples} examples ({seen.format}), {plan.held_out} held out")
    with phase("tokens") as said:
        started = time.monotonic()
        encoder = Encoder(tokenizer, shape=seen.format, loss=choose_loss(spec, seen.format), chat=seen.chat)
        answers = HeldOut(spec.evaluation.max_examples)
        tokens = tokenise(parts, plan=plan, encoder=encoder, tokenizer=tokenizer, held_out=answers, folder=scratch)
        answers.write(held_out)
        rate = seen.examples / (time.monotonic() - started)
        said.append(f"{sum(tokens.lengths)} tokens, {rate:.0f} examples a second")
    stop = None if not stops or stops & set(encoder.stop_ids) else tokenizer.convert_ids_to_tokens(encoder.stop_ids[0])
    return Uncut(seen, plan, tokens, measure(tokens.lengths), stop)


def cut_data(data: Uncut, folder: Path, *, key: str, spec: TuningSpec, longest: int) -> DataRecord:
    """Write the shards into a folder. Raises EXAMPLES_TOO_LONG if nothing remains of a part."""
    with phase("shards") as said:
        train_shards, train = write_shards(data.tokens.train, folder, part="train", longest=longest)
        held_shards, held = write_shards(data.tokens.validation, folder, part="validation", longest=longest)
        shards = (*train_shards, *held_shards)
        said.append(f"{len(shards)}, sequences of at most {longest} tokens")
    _must_teach(data, longest=longest, cuts={"the training": train, "the held-out": held})
    return DataRecord(
        key=key,
        facts=data.facts,
        max_sequence_length=longest,
        observed=_observed(data, spec, longest=longest, train=train, held=held),
        train=train,
        validation=held,
        shards=shards,
        first_example=data.tokens.first_example,
        token_histogram=data.lengths.histogram,
    )


def _must_teach(data: Uncut, *, longest: int, cuts: dict[str, Cut]) -> None:
    for name, cut in cuts.items():
        if not cut.rows:
            raise TrainerError(
                ExitCode.EXAMPLES_TOO_LONG,
                f"At maxSequenceLength {longest} nothing to train on remains of any of {name} part's {cut.dropped} "
                f"examples (the longest has {data.lengths.longest} tokens): raise it, or shorten the prompts.",
            )


def _observed(data: Uncut, spec: TuningSpec, *, longest: int, train: Cut, held: Cut) -> Observed:
    return replace(
        observe(spec, data.survey, data.plan, train_examples=train.rows),
        truncated=train.truncated + held.truncated,
        dropped=train.dropped + held.dropped,
        longest=data.lengths.longest,
        max_sequence_length=longest,
        with_special_tokens=data.tokens.with_special_tokens,
        left_out=data.tokens.left_out,
        stop_token=data.stop_token,
    )


@contextmanager
def phase(name: str) -> Iterator[list[str]]:
    """Log one line when a phase is done: its name, what it found, how long it took."""
    started = time.monotonic()
    said: list[str] = []
    yield said
    log.info("%s: %s (%.1f s)", name, "; ".join(said), time.monotonic() - started)
