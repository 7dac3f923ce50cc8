"""Answers to the same few prompts every so many steps, kept with their step in object storage.

They show what losses do not: a format that collapses, an answer that never ends. Nothing depends on them: a prompt that
cannot be answered or a storage that is away is warned about, and training goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune_contract import paths
from finetune_contract.prepared import Resolved
from finetune_contract.run_config import RunConfig
from finetune_contract.samples import Sample, from_lines, to_lines
from finetune_contract.spec import Evaluation
from finetune_trainer.data.dataset import Asked, Data, Question
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.evaluation.evaluate import sample
from finetune_trainer.evaluation.generate import answers
from finetune_trainer.logs import log
from finetune_trainer.model.build import computing
from finetune_trainer.parallel.distributed import world
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.storage import Store

HELD_OUT = 3
"""Held-out prompts that are asked where the spec names none."""
_FILE = re.compile(r"^attempt-(\d+)\.jsonl$")


def prompts_to_ask(settings: Evaluation, data: Data, tokenizer: Any) -> list[Asked]:
    """Return the spec's prompts, or a few held-out ones."""
    if settings.samples.prompts:
        return [sample(text, data=data, tokenizer=tokenizer) for text in settings.samples.prompts]
    return [*data.questions[:HELD_OUT]]


class SampleFile:
    """This attempt's file in storage: written whole, in the background, after each step that is sampled."""

    def __init__(self, *, config: RunConfig, store: Store, resumed_from: int | None) -> None:
        self._store = store
        self._folder = paths.join(config.run_uri, paths.SAMPLES_DIR)
        self._uri = paths.join(config.run_uri, paths.samples_file(config.job.attempt))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="samples")
        self._pending: Future[None] | None = None
        self._complained = False
        self.samples: tuple[Sample, ...] = world().from_first(lambda: self._kept(up_to=resumed_from or 0))

    def has(self, step: int) -> bool:
        """Whether a step has been sampled, by this attempt or one before."""
        return any(sample.step == step for sample in self.samples)

    def add(self, samples: Sequence[Sample]) -> None:
        """Keep more samples."""
        self.samples += tuple(samples)
        if world().first:
            self._pending = self._pool.submit(self._write, to_lines(self.samples).encode())

    def close(self) -> None:
        """Wait until what was added is written or has failed."""
        self._pool.shutdown(wait=True)

    def _kept(self, *, up_to: int) -> tuple[Sample, ...]:
        try:
            names = [item.path for item in self._store.list(self._folder) if _FILE.match(item.path)]
            found = from_lines(self._store.read(paths.join(self._folder, max(names))).decode()) if names else []
        except (NotFoundError, ValueError) as error:
            log.warning("earlier samples cannot be read: %s", error)
            return ()
        return tuple(sample for sample in found if sample.step <= up_to)

    def _write(self, content: bytes) -> None:
        try:
            self._store.write(self._uri, content)
            self._complained = False
        except TrainerError as error:
            if not self._complained:
                log.warning("samples are not stored; the next ones will be tried with them: %s", error)
            self._complained = True


class KeepSamples(TrainerCallback):  # type: ignore[misc]  # untyped
    """Asks the model between two steps."""

    def __init__(
        self, asked: Sequence[Asked], *, file: SampleFile, tokenizer: Any, settings: Evaluation, resolved: Resolved
    ) -> None:
        self._asked, self._file, self._tokenizer = asked, file, tokenizer
        self._settings, self._resolved = settings, resolved

    def on_train_begin(
        self, _args: Any, state: TrainerState, _control: TrainerControl, *, model: Any, **_: Any
    ) -> None:
        """Ask the base model, or what a signal put off."""
        if self._due(state) and not self._file.has(state.global_step):
            self._sample(model, state.global_step)

    def on_step_end(self, _args: Any, state: TrainerState, _control: TrainerControl, *, model: Any, **_: Any) -> None:
        """Ask the model where it is due; told to stop, the next attempt does."""
        if self._due(state) and not PREEMPTION.requested:
            self._sample(model, state.global_step)

    def _due(self, state: TrainerState) -> bool:
        every = self._resolved.sample_every_steps
        return every is not None and (state.global_step % every == 0 or state.global_step >= state.max_steps)

    def _sample(self, model: Any, step: int) -> None:
        try:
            given = self._answers(model)
        except Exception as error:  # a model that cannot answer may still be trained
            if not PREEMPTION.requested:
                log.warning("no samples at step %d: %s", step, error)
            return
        self._file.add(
            [
                Sample(step=step, prompt=one.prompt, expected=_expected(one), answer=answer)
                for one, answer in zip(self._asked, given, strict=True)
            ]
        )
        log.info("step %d: sample: %s", step, _shown(given[0]) if given else "")

    def _answers(self, model: Any) -> list[str]:
        with computing(self._resolved.precision):
            return answers(
                model,
                self._tokenizer,
                self._asked,
                max_new_tokens=self._settings.max_new_tokens,
                max_prompt_tokens=self._resolved.max_sequence_length,
            )


def _expected(asked: Asked) -> str | None:
    return asked.answer if isinstance(asked, Question) else None


def _shown(text: str, *, size: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= size else line[: size - 1] + "…"
