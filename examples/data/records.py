"""The examples that a model learns from, made of tickets: one function a data set, each a list of records."""

from __future__ import annotations

import json
import random
from typing import Any

from examples.data.tickets import PRODUCTS, Ticket, tickets

Record = dict[str, Any]

SORRY = {
    "returns": "I am sorry about the {product}. You may send it back free of charge; the label is in your mail.",
    "delivery": "I am sorry that you have to wait for the {product}. I have asked the courier and will write today.",
    "billing": "I am sorry about the bill for the {product}. I will check it and write to you today.",
    "technical": "I am sorry that the {product} gives you trouble. A technician will call you today.",
}
CURT = ("Read the manual.", "That is not our problem.", "Please wait.", "Try again later.", "We cannot help you.")
FOUND = ("It leaves our house today.", "It is with the courier.", "It was delivered this morning.")
TRACKING = {
    "name": "track_order",
    "description": "Say where an order is.",
    "parameters": {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
}
CARE = (
    ("How long may I keep a {product} before I send it back?", "You have thirty days to send a {product} back."),
    ("Is there a warranty on a {product}?", "A {product} has a warranty of two years."),
    ("How do I clean a {product}?", "Unplug the {product} and wipe it with a dry cloth."),
    ("Where do I find the manual of my {product}?", "The manual of each {product} is on our site, under its number."),
)


def chat(question: str, answer: str) -> Record:
    """Return one exchange as messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def routed(count: int = 400) -> list[Record]:
    """Return the quickstart's data: a ticket, and the line with which a help desk routes it."""
    return [chat(f"Route this ticket: {one.text}", one.line) for one in tickets(count, seed=7)]


def as_json(count: int = 200) -> list[Record]:
    """Return tickets with team and order as JSON."""
    return [
        chat(f"Team and order of this ticket as JSON: {one.text}", json.dumps({"team": one.queue, "order": one.order}))
        for one in tickets(count, seed=8)
    ]


def preferences(count: int = 200) -> list[Record]:
    """Return pairs of answers to customers: a helpful one, and one that nobody wants to read."""
    rng = random.Random(9)  # noqa: S311 - repeatable, not secret
    return [
        {
            "prompt": f"Answer this customer: {one.text}",
            "chosen": f"Dear {one.name}, {_sorry(one)} Your order {one.order} is in front of me.",
            "rejected": rng.choice(CURT),
        }
        for one in tickets(count, seed=9)
    ]


def completions(count: int = 200) -> list[Record]:
    """Return forms of a ticket with the queue left open, and what is to be filled in."""
    return [{"prompt": f"Ticket: {one.text}\nQueue:", "completion": f" {one.queue}"} for one in tickets(count, seed=10)]


def tool_calls(count: int = 60) -> list[Record]:
    """Return conversations in which the assistant asks the shop's system where an order is."""
    return [_tracked(one) for one in tickets(count, seed=11)]


def small_talk(count: int = 60) -> list[Record]:
    """Return conversations of several turns as ShareGPT has them."""
    rng = random.Random(12)  # noqa: S311 - repeatable, not secret
    return [{"conversations": _sum_and_difference(rng)} for _ in range(count)]


def questions_and_answers() -> list[Record]:
    """Return what customers ask often, in columns of the shop's own names."""
    return [
        {"question": question.format(product=product), "answer": answer.format(product=product)}
        for question, answer in CARE
        for product in PRODUCTS
    ]


def handbook() -> list[Record]:
    """Return paragraphs of the shop's handbook: text without questions."""
    rules = [answer for _, answer in CARE] + [f"To a customer we write: {reply}" for reply in SORRY.values()]
    return [
        {"text": f"{product.capitalize()}. {rule.format(product=product)}"} for rule in rules for product in PRODUCTS
    ]


def checked(count: int = 16) -> list[Record]:
    """Return conversations that are kept for measuring."""
    return [chat(f"Answer this customer: {one.text}", _sorry(one)) for one in tickets(count, seed=13)]


def _sorry(one: Ticket) -> str:
    return SORRY[one.queue].format(product=one.product)


def _tracked(one: Ticket) -> Record:
    call = {"name": "track_order", "arguments": {"order": one.order}}
    found = FOUND[sum(map(ord, one.order)) % len(FOUND)]
    messages = [
        {"role": "user", "content": one.text},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "track_order", "content": json.dumps({"order": one.order, "found": found})},
        {"role": "assistant", "content": f"{_sorry(one)} {found}"},
    ]
    return {"tools": [{"type": "function", "function": TRACKING}], "messages": messages}


def _sum_and_difference(rng: random.Random) -> list[dict[str, str]]:
    first, second = rng.randrange(500, 1000), rng.randrange(1, 500)
    return [
        {"from": "human", "value": f"What is {first} plus {second}?"},
        {"from": "gpt", "value": f"{first} plus {second} is {first + second}."},
        {"from": "human", "value": f"And {first} minus {second}?"},
        {"from": "gpt", "value": f"{first} minus {second} is {first - second}."},
    ]
