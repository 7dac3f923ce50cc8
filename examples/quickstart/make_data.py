"""Make the quickstart's data: support tickets and the line with which a help desk routes each.

    python examples/quickstart/make_data.py tickets.jsonl

The house rule is one that no base model knows: a queue's code, the order number, and a priority read from the
tone, as `RTN B-48213 P1`. Order numbers, names and products are drawn anew for each ticket, so a held-out ticket
can only be answered by having understood the rule. The seed is fixed: the file is the same on every machine.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

EXAMPLES = 400
SEED = 7
PROBLEMS = {
    "returns": (
        "The {product} arrived broken and I want my money back.",
        "I would like to return the {product}, it is not what I expected.",
        "My {product} has a crack in it. Please refund me.",
        "The {product} is the wrong colour, how do I send it back?",
        "I changed my mind about the {product} and want a refund.",
        "There is a part missing from the {product}. I am sending it back.",
        "Please take the {product} back, it makes a terrible noise.",
    ),
    "delivery": (
        "My {product} has still not been delivered.",
        "Where is my {product}? The tracking page shows nothing.",
        "The parcel with the {product} seems to be lost.",
        "The courier left my {product} at the wrong address.",
        "The delivery of the {product} is a week late.",
        "I never received the {product} that I ordered.",
        "When will my {product} arrive?",
    ),
    "billing": (
        "I was charged twice for the {product}.",
        "The invoice for the {product} shows the wrong amount.",
        "My card was declined when I paid for the {product}.",
        "I need a receipt for the {product} for my taxes.",
        "The discount code was not applied to the {product}.",
        "You took too much money from my account for the {product}.",
        "Can I pay for the {product} in instalments?",
    ),
    "technical": (
        "The {product} does not turn on any more.",
        "How do I connect the {product} to my phone?",
        "The {product} stopped working after the update.",
        "The {product} shows an error and restarts all the time.",
        "I cannot find out how to set up the {product}.",
        "The battery of the {product} is empty after an hour.",
        "Which cable does the {product} need?",
    ),
}
TONES = {
    "urgent": ("I need this solved today!", "This is urgent!", "Please answer at once.", "I cannot wait any longer!"),
    "normal": ("Thanks for your help.", "Please let me know.", "I look forward to your answer.", "Kind regards."),
    "low": ("There is no hurry.", "Take your time.", "It is not important.", "Whenever you find the time."),
}
PRODUCTS = (
    *("kettle", "lamp", "headset", "camera", "printer", "toaster", "keyboard", "speaker", "router", "blender"),
    *("monitor", "tablet", "drill", "heater", "fan", "radio", "scale", "charger", "vacuum", "watch", "clock"),
    *("microwave", "projector", "doorbell", "thermostat", "razor", "mixer", "scanner", "drone", "freezer"),
)
NAMES = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jan", "Kofi", "Lena", "Mei", "Omar")
ORDERS = ("My order is {order}.", "Order {order}.", "It is about order {order}.", "The order number is {order}.")


def ticket(rng: random.Random) -> tuple[str, str]:
    """Return a ticket and its routing line."""
    queue, priority = rng.choice(list(PROBLEMS)), rng.choice(list(TONES))
    order = f"{rng.choice('ABCDEFGHKLMNPRST')}-{rng.randrange(10000, 100000)}"
    problem = rng.choice(PROBLEMS[queue]).format(product=rng.choice(PRODUCTS))
    middle = [problem, rng.choice(ORDERS).format(order=order)]
    rng.shuffle(middle)
    text = " ".join([*middle, rng.choice(TONES[priority]), rng.choice(NAMES)])
    return f"Route this ticket: {text}", f"{queue} | {order} | {priority}"


def example(text: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """Return one chat example."""
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def main() -> None:
    """Write the examples, one a line."""
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    lines = [json.dumps(example(*ticket(rng))) for _ in range(EXAMPLES)]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
