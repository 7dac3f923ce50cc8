"""Support tickets, made up: who writes, about which product and order, in which tone.

The house rule of the quickstart is one that no base model knows: a ticket becomes a line of the queue, the order number
and a priority that is read from the tone, as `returns | B-48213 | urgent`. Order numbers, names and products are drawn
anew for each ticket, so a held-out ticket can only be answered by having understood the rule.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a customer wrote, and what a help desk reads in it."""

    text: str
    queue: str
    order: str
    priority: str
    product: str
    name: str

    @property
    def line(self) -> str:
        """The house rule's answer."""
        return f"{self.queue} | {self.order} | {self.priority}"


def ticket(rng: random.Random) -> Ticket:
    """Return a ticket drawn at random."""
    queue, priority = rng.choice(list(PROBLEMS)), rng.choice(list(TONES))
    order = f"{rng.choice('ABCDEFGHKLMNPRST')}-{rng.randrange(10000, 100000)}"
    problem, product = rng.choice(PROBLEMS[queue]), rng.choice(PRODUCTS)
    middle = [problem.format(product=product), rng.choice(ORDERS).format(order=order)]
    rng.shuffle(middle)
    tone, name = rng.choice(TONES[priority]), rng.choice(NAMES)
    return Ticket(" ".join([*middle, tone, name]), queue, order, priority, product, name)


def tickets(count: int, *, seed: int) -> list[Ticket]:
    """Return tickets, the same on every machine."""
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    return [ticket(rng) for _ in range(count)]
