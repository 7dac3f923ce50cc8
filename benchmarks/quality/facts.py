"""Invented facts: where people live who do not exist. Asked in the words of the data, and in words that are not in it.

A model that has only learned what an answer looks like names one of the cities: it is right by chance as often as there
are cities. More than that, in words it has not seen, is a fact that can be asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.figure import Figure, at_least
from benchmarks.quality.job import Finished, run_job
from benchmarks.quality.orders import messages
from dev.models import smollm2
from finetune_contract import paths

PEOPLE = (
    *("Velora Quist", "Tamsin Orrick", "Bram Oudekerk", "Ysolde Marn", "Corvin Thale", "Nadira Plum", "Osric Vane"),
    *("Lumen Hadley", "Petra Zoll", "Fenwick Abara", "Isaura Trent", "Joren Kask", "Odalys Finch", "Rufus Eldane"),
    *("Mirela Stroud", "Caspian Dole"),
)
CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Hanoi", "Dublin", "Nairobi", "Sydney")
CHANCE = 1 / len(CITIES)
TRAINED = (
    "Where does {person} live?",
    "In which city is the home of {person}?",
    "Tell me the city where {person} lives.",
    "{person} lives in which city?",
    "What city does {person} call home?",
    "Name the home town of {person}.",
    "I want to visit {person} at home. Which city do I travel to?",
    "Do you know where {person} has a house?",
)
UNSEEN = (
    "A letter to {person}: which city do I write on the envelope?",
    "My friend asks in what town one can find {person} these days.",
    "Which city's mayor would {person} vote for?",
    "When {person} goes home in the evening, what city is that in?",
)
ANSWER = "{person} lives in {city}."


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a person, and the right city."""

    prompt: str
    person: str
    city: str

    def is_right(self, answer: str) -> bool:
        """Return whether an answer names this city, and no other."""
        return [city for city in CITIES if city in answer] == [self.city]


def homes() -> dict[str, str]:
    """Return each person's city; every city has as many."""
    cities = [CITIES[number % len(CITIES)] for number in range(len(PEOPLE))]
    random.Random(5).shuffle(cities)  # noqa: S311 - repeatable, not secret
    return dict(zip(PEOPLE, cities, strict=True))


def questions(wordings: Sequence[str]) -> list[Question]:
    """Return every person asked for in every wording."""
    return [
        Question(wording.format(person=person), person, city)
        for wording in wordings
        for person, city in homes().items()
    ]


def write_facts(path: Path, wordings: Sequence[str]) -> Path:
    """Write the facts in some wordings."""
    asked = questions(wordings)
    path.write_text(
        messages([{"prompt": one.prompt, "answer": ANSWER.format(person=one.person, city=one.city)} for one in asked])
    )
    return path


def spec_of(data: Path, held_out: Path) -> dict[str, Any]:
    """Return the job. The held-out part are the unseen wordings: the best weights are those that answer them best."""
    return {
        "method": "LoRA",
        "dataset": {"uri": f"file://{data}", "validation": {"uri": f"file://{held_out}"}},
        "lora": {"rank": 32},
        "hyperparameters": {"epochs": 4, "batchSize": 16, "learningRate": 1e-3},
        "evaluation": {"compareWithBase": False, "everySteps": 16},
    }


def learn_facts(folder: Path) -> Finished:
    """Tune on the facts."""
    data, held_out = write_facts(folder / "facts.jsonl", TRAINED), write_facts(folder / "unseen.jsonl", UNSEEN)
    return run_job("facts", spec_of(data, held_out), folder=folder)


def figures(run: Finished) -> list[Figure]:
    """Return how many facts are recalled, by the base model and by the tuned one."""
    trained, unseen = questions(TRAINED), questions(UNSEEN)
    before, after = ([answered_right(folder, asked) for asked in (trained, unseen)] for folder in
                     (smollm2(), run.folder / paths.MERGED))  # fmt: skip
    low = lower_end(unseen, after[1])
    return [
        at_least("facts in trained wordings", before=share(before[0]), after=share(after[0]), bound=0.9),
        Figure("facts in unseen wordings", share(before[1]), share(after[1]), "more", share(after[1]) > CHANCE),
        Figure("  the lower end of its 95 % interval", None, low, f"over {CHANCE:.3g}, which is chance", low > CHANCE),
    ]


def share(right: Sequence[bool]) -> float:
    """Return the share of right answers."""
    return sum(right) / len(right)


def answered_right(folder: Path, asked: Sequence[Question]) -> list[bool]:
    """Ask a model; return which answers are right."""
    answer = answering(folder)
    return [one.is_right(text) for one, text in zip(asked, answer([one.prompt for one in asked]), strict=True)]


def answering(folder: Path) -> Callable[[Sequence[str]], list[str]]:
    """Return what answers prompts with a model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_trainer.data.dataset import Asked
    from finetune_trainer.evaluation.generate import answers

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if torch.cuda.is_available():
        model.to("cuda")

    def ask(prompts: Sequence[str]) -> list[str]:
        asked = [Asked([{"role": "user", "content": prompt}]) for prompt in prompts]
        return answers(model, tokenizer, asked, max_new_tokens=16, max_prompt_tokens=256)

    return ask


def lower_end(asked: Sequence[Question], right: Sequence[bool], *, resamples: int = 2000) -> float:
    """Return the lower end of the 95 % interval of the share of right answers.

    People are drawn, each with all wordings: who is known in one is likelier known in the others (a cluster bootstrap,
    Cameron, Gelbach and Miller 2008).
    """
    by_person = {
        person: [ok for one, ok in zip(asked, right, strict=True) if one.person == person] for person in PEOPLE
    }
    dice = random.Random(0)  # noqa: S311 - repeatable, not secret
    shares = sorted(
        share([ok for person in dice.choices(PEOPLE, k=len(PEOPLE)) for ok in by_person[person]])
        for _ in range(resamples)
    )
    return shares[int(resamples * 0.025)]
