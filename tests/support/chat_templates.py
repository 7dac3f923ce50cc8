"""Chat templates of well-known families, cut down to what decides where the assistant speaks: their quirks are kept.

None of them marks its turns with {% generation %}.
"""

# ruff: noqa: RUF001 - DeepSeek writes its tokens with full-width bars

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

from dev.models import smollm2


@dataclass(frozen=True)
class Family:
    """A template and the special tokens that it writes."""

    template: str
    tokens: tuple[str, ...]
    """The first is BOS, the second ends the assistant's turns."""


FAMILIES = {
    # Adds a system prompt of its own.
    "chatml with a default system prompt": Family(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    # Trims contents.
    "llama 3": Family(
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    # No generation prompt; the system prompt moves to the last user turn, and vanishes when there is an answer after.
    "mistral": Family(
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
        "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
        "{%- for message in rest %}{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}"
        "{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
        "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- else %}"
        "{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
    ),
    # Blanks around the answer, and the system prompt inside the first user turn.
    "llama 2": Family(
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}"
        "{% set rest = messages %}{% set system = '' %}{% endif %}{% for message in rest %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + "
        "message['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
        "{% endif %}{% endfor %}",
        ("<s>", "</s>"),
    ),
    # Refuses system prompts; calls the assistant "model".
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
        "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        ("<bos>", "<end_of_turn>", "<start_of_turn>"),
    ),
    "phi 3": Family(
        "{% for m in messages %}{{'<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    # Reasoning: dropped from all turns but the last, which gets an empty one if it has none.
    "qwen 3": Family(
        "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}"
        "{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else %}"
        "{%- set content = m.content %}{%- set reasoning = '' %}{%- if '</think>' in m.content %}"
        "{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{%- set reasoning = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- endif %}{%- if loop.index0 > ns.last and (loop.last or reasoning) %}"
        "{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
        "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    ),
    # The generation prompt opens a thought that no turn of the history has.
    "deepseek r1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
        "{% elif m['role'] == 'system' %}{{ m['content'] }}{% else %}{% set content = m['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    ),
}


def tokenizer_of(family: Family) -> Any:
    """Return SmolLM2's tokenizer with the template and its tokens."""
    tokenizer = copy.deepcopy(_smollm2_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.tokens)})
    tokenizer.bos_token, tokenizer.eos_token = family.tokens[:2]
    tokenizer.chat_template = family.template
    return tokenizer


@cache
def _smollm2_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2())
