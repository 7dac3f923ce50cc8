"""A strict format: an order in a sentence becomes JSON of a schema. The base model knows JSON, but not this one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quality.figure import Figure, at_least, at_most
from benchmarks.quality.job import Finished, run_job

EXAMPLES = 250
"""A fifth of them is held out."""
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["item", "count", "colour", "express"],
    "properties": {
        "item": {"type": "string"},
        "count": {"type": "integer"},
        "colour": {"type": "string"},
        "express": {"type": "boolean"},
    },
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ITEMS = ("kettle", "lamp", "chair", "scarf", "bicycle", "clock", "tent", "umbrella", "blanket", "suitcase", "jacket")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "purple", "grey", "orange", "brown")
NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jan", "Kofi", "Lena", "Mei", "Omar")
SENTENCES = (
    "{name} wants {count} {item}s in {colour}.",
    "Please send {name} {count} {colour} {item}s.",
    "{count} {item}s for {name}, all of them {colour}.",
    "Hello, this is {name}. I would like {count} {item}s, {colour} ones.",
)
HURRY = {True: ("It is urgent.", "By tomorrow, please.", "As fast as you can!"), False: ("", "No hurry.", "Any day.")}


def example(dice: random.Random) -> dict[str, Any]:
    """Return an order and the JSON that it stands for."""
    count, express = dice.randrange(2, 11), dice.random() < 0.5
    item, colour = dice.choice(ITEMS), dice.choice(COLOURS)
    sentence = dice.choice(SENTENCES).format(
        name=dice.choice(NAMES), count=NUMBERS[count - 1], item=item, colour=colour
    )
    prompt = f"Write this order as JSON. {sentence} {dice.choice(HURRY[express])}".strip()
    answer = json.dumps({"item": item, "count": count, "colour": colour, "express": express})
    return {"prompt": prompt, "answer": answer}


def messages(examples: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> str:
    """Return JSON Lines of chats."""
    roles = (("user", "prompt"), ("assistant", "answer"))
    chats = [{"messages": [{"role": role, "content": one[key]} for role, key in roles]} for one in examples]
    return "".join(f"{json.dumps(chat)}\n" for chat in chats)


def write_orders(path: Path, *, count: int = EXAMPLES) -> Path:
    """Write different orders; the same on every machine."""
    dice = random.Random(3)  # noqa: S311 - repeatable, not secret
    path.write_text(messages([example(dice) for _ in range(count)]))
    return path


def spec_of(data: Path, *, steps: int = 75) -> dict[str, Any]:
    """Return the job: rank, rates and all else are what the trainer chooses."""
    return {
        "method": "LoRA",
        "dataset": {"uri": f"file://{data}", "validation": {"fraction": 0.2}},
        "output": {"merged": {"dtype": "float32"}, "gguf": {"types": ["f16"]}},
        "hyperparameters": {"maxSteps": steps, "batchSize": 8},
        "evaluation": {
            "everySteps": 25,
            "metrics": ["jsonValid", "jsonSchema", "exactMatch"],
            "jsonSchema": SCHEMA,
            "maxExamples": 50,
            "maxNewTokens": 48,
        },
        "checkpoint": {"everySteps": steps},
    }


def learn_format(folder: Path) -> Finished:
    """Tune on orders."""
    return run_job("format", spec_of(write_orders(folder / "orders.jsonl")), folder=folder)


def figures(run: Finished) -> list[Figure]:
    """Return how many held-out answers fit the schema, and what that cost in general."""
    base, tuned = run.evaluation["base"], run.evaluation["tuned"]
    forgotten = tuned["generalPerplexity"] / base["generalPerplexity"] - 1
    return [
        at_least(
            "answers that fit the schema",
            before=base["jsonSchema"],
            after=tuned["jsonSchema"],
            bound=0.95,
            base_below=0.2,
        ),
        Figure("answers that are exactly right", base["exactMatch"], tuned["exactMatch"], "more", True),
        at_most("general perplexity, relative change", before=0.0, after=abs(forgotten), bound=0.02),
    ]
