"""A language model that judges the tuned model's answers against the base's, pair by pair.

Each pair is asked about twice, with the answers in both orders, since judges prefer a place (Zheng et al. 2023,
arXiv:2306.05685): a model has won where both replies name it, and the pair is a tie where they contradict each other.
Replies are kept under the run's folder, so that no attempt asks a question twice. Whatever happens to the judge, the
tuned model is not lost: the verdicts that are there count, and a warning says what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.evaluation import JudgeCounts, JudgeVerdict
from finetune_contract.measures import Judge
from finetune_contract.model import Model
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.data.dataset import Question
from finetune_trainer.errors import NotFoundError
from finetune_trainer.evaluation.chat_client import ChatClient, Messages, Patience
from finetune_trainer.evaluation.judge_prompt import Reply, messages, read
from finetune_trainer.logs import Pace, log
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.storage import Store

FOLDER = "judge"
KEY = "OPENAI_API_KEY"
_AT_ONCE = 4
_HOPELESS_AFTER = 3
"""Failures in a row, each after its retries, that end it all."""
_MAX_WARNING = 300
_TICK = 0.2
"""Seconds between two looks at the deadline and for a signal."""

T = TypeVar("T")


class Kept(Model):
    """One file of judge/: a reply, under a name made of the question."""

    reply: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with both models' answers."""

    question: Question
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class Judged:
    """All verdicts, pair by pair; None where no reply came."""

    verdicts: tuple[JudgeVerdict | None, ...]
    warning: str | None = None

    @property
    def counts(self) -> JudgeCounts:
        """How often which verdict was given."""
        found = Counter(self.verdicts)
        named = {verdict.lower(): found[verdict] for verdict in JudgeVerdict}
        return JudgeCounts(pairs=len(self.verdicts), unanswered=found[None], **named)

    @property
    def scores(self) -> list[float]:
        """1 where the tuned model won, 0 where the base did, a half in between; what is unclear has none."""
        return [_SCORES[verdict] for verdict in self.verdicts if verdict in _SCORES]


def judge_pairs(pairs: Sequence[Pair], *, config: RunConfig, store: Store, patience: Patience | None = None) -> Judged:
    """Ask the judge of the spec about each pair. Raises only PREEMPTED."""
    judge = config.spec.evaluation.judge
    assert judge is not None  # noqa: S101 - the caller's condition
    patience = patience or Patience(deadline=time.monotonic() + judge.timeout_seconds)
    log.info("asking %s about %d pairs of answers, each in both orders", judge.model, len(pairs))
    court = _Court(judge, config=config, store=store, patience=patience)
    judged = Judged(verdicts=tuple(court.verdicts(pairs)))
    warning = _warning(judged.counts, court.why)
    log.info("judge: %s", judged.counts.to_json())
    if warning:
        log.warning("%s", warning)
    return replace(judged, warning=warning)


class _Court:
    """Asks about pairs in a few threads, and gives up where there is no hope."""

    def __init__(self, judge: Judge, *, config: RunConfig, store: Store, patience: Patience) -> None:
        key = os.environ.get(f"{Use.JUDGE.value}{KEY}") or os.environ.get(KEY)
        self._judge, self._store, self._patience = judge, store, patience
        self._folder = paths.join(config.run_uri, FOLDER)
        self._client = ChatClient(judge.endpoint, judge.model, key=key, max_tokens=judge.max_tokens, patience=patience)
        self._failures = 0
        self.why = ""
        """What went wrong last."""

    def verdicts(self, pairs: Sequence[Pair]) -> list[JudgeVerdict | None]:
        """Return a verdict a pair, as far as they come before the deadline."""
        found: list[JudgeVerdict | None] = [None] * len(pairs)
        pace = Pace()
        for index, verdict in _in_parallel([partial(self._decide, pair) for pair in pairs], self._patience):
            if isinstance(verdict, Exception):
                self._failed(verdict)
            else:
                self._failures = 0
                found[index] = verdict
                if pace.is_due:
                    log.info("judged %d of %d pairs", len(pairs) - found.count(None), len(pairs))
        return found

    def _decide(self, pair: Pair) -> JudgeVerdict:
        if pair.base.strip() == pair.tuned.strip():
            return JudgeVerdict.TIE
        as_shown = self._reply(pair.question, first=pair.base, second=pair.tuned)
        swapped = self._reply(pair.question, first=pair.tuned, second=pair.base)
        if as_shown is None or swapped is None:
            return JudgeVerdict.UNCLEAR
        return _AGREED.get((as_shown, swapped), JudgeVerdict.CONTRADICTORY)

    def _reply(self, question: Question, *, first: str, second: str) -> Reply | None:
        asked = messages(question, first=first, second=second, rubric=self._judge.rubric)
        uri = paths.join(self._folder, f"{_digest(self._judge, asked)}.json")
        try:
            return read(Kept.model_validate_json(self._store.read(uri)).reply)
        except (NotFoundError, ValidationError):
            reply = self._client.ask(asked)
        self._store.write(uri, Kept(reply=reply).to_json().encode())
        return read(reply)

    def _failed(self, error: Exception) -> None:
        if self._patience.stop.is_set():
            return  # it was told to stop: no reason of its own
        self.why = str(error) or type(error).__name__
        self._failures += 1
        if getattr(error, "hopeless", False) or self._failures >= _HOPELESS_AFTER:
            self._patience.stop.set()


_AGREED = {
    (Reply.FIRST, Reply.SECOND): JudgeVerdict.BASE,
    (Reply.SECOND, Reply.FIRST): JudgeVerdict.TUNED,
    (Reply.TIE, Reply.TIE): JudgeVerdict.TIE,
}
_SCORES: dict[JudgeVerdict | None, float] = {
    JudgeVerdict.TUNED: 1.0,
    JudgeVerdict.BASE: 0.0,
    JudgeVerdict.TIE: 0.5,
    JudgeVerdict.CONTRADICTORY: 0.5,
}


def _in_parallel(
    tasks: Sequence[Callable[[], JudgeVerdict]], patience: Patience
) -> Iterator[tuple[int, JudgeVerdict | Exception]]:
    """Run tasks in daemon threads; yield results as they come, until all are there or patience is over.

    A thread that hangs in a request holds up neither the deadline, nor a signal, nor the end of the process.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, JudgeVerdict | Exception]] = queue.SimpleQueue()
    for index in range(len(tasks)):
        todo.put(index)

    def work() -> None:
        while not patience.is_over:
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, tasks[index]()))
            except Exception as error:  # the border of the thread: whatever it is, the run goes on
                done.put((index, error))

    for _ in range(min(_AT_ONCE, len(tasks))):
        threading.Thread(target=work, daemon=True, name="judge").start()
    try:
        yield from _arriving(done, len(tasks), patience)
    finally:
        patience.stop.set()


def _arriving(done: queue.SimpleQueue[T], count: int, patience: Patience) -> Iterator[T]:
    while count:
        PREEMPTION.check()
        try:
            yield done.get(timeout=_TICK)
            count -= 1
        except queue.Empty:
            if patience.is_over:
                return


def _digest(judge: Judge, asked: Messages) -> str:
    """Return a name for a question: the same for the same words to the same model."""
    whole = json.dumps([judge.endpoint, judge.model, judge.max_tokens, asked], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _warning(counts: JudgeCounts, why: str) -> str | None:
    missing = []
    if counts.unanswered:
        missing.append(f"gave no verdict on {counts.unanswered} of {counts.pairs} pairs ({why or 'time limit'})")
    if counts.unclear:
        missing.append(f"answered nonsense on {counts.unclear} of {counts.pairs} pairs")
    if counts.contradictory > counts.pairs / 2:
        missing.append(f"changed its mind with the order on {counts.contradictory} of {counts.pairs} pairs")
    return f"evaluation.judge {' and '.join(missing)}."[:_MAX_WARNING] if missing else None
