"""The Modelfile's template says in Go's language what the model's own says in Jinja: asked of Go itself."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from dev.cluster.toolchain import find_go
from finetune_trainer.outputs.ollama import chat_shape, modelfile
from tests.support.chat_templates import FAMILIES, tokenizer_of

Render = Callable[[str, list[dict[str, str]]], str]

# Ollama's own way, as far as a template can tell: text/template over messages with Role and Content.
GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

func main() {
	var in struct {
		Template string
		Messages []struct{ Role, Content string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	if err := template.Must(template.New("").Parse(in.Template)).Execute(os.Stdout, in); err != nil {
		panic(err)
	}
}
"""


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Render:
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    subprocess.run([find_go(), "build", "-o", "render", "main.go"], cwd=folder, check=True)

    def render(template: str, messages: list[dict[str, str]]) -> str:
        asked = json.dumps({"template": template, "messages": messages})
        return subprocess.run([folder / "render"], input=asked, capture_output=True, text=True, check=True).stdout

    return render


def template_in(text: str) -> str:
    found = re.search(r'TEMPLATE """(.*)"""', text, re.DOTALL)
    assert found, text
    return found[1]


QUESTION = [{"role": "user", "content": "Is {{ this }} right?"}]
SEVERAL = [*QUESTION, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And now?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *QUESTION]


@pytest.mark.parametrize("conversation", [QUESTION, SEVERAL, SYSTEM], ids=["question", "several", "system"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ollama_s_prompt_is_the_model_s_own(go: Render, family: str, conversation: list[dict[str, str]]) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    text, _ = modelfile(tokenizer, weights="model-q8_0.gguf", stop_ids=[])

    if family == "gemma" and conversation is SYSTEM:
        assert 'eq .Role "system"' not in template_in(text)  # which the model's own template refuses
        return
    wanted = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert go(template_in(text), conversation) == wanted


def test_the_modelfile_names_its_weights_and_every_stop_token() -> None:
    tokenizer = tokenizer_of(FAMILIES["qwen 3"])
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    text, warnings = modelfile(tokenizer, weights="model-q8_0.gguf", stop_ids=[tokenizer.eos_token_id, other])

    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n')
    assert warnings == []


def test_a_prompt_that_differs_in_some_conversations_is_told() -> None:
    _, warnings = modelfile(tokenizer_of(FAMILIES["mistral"]), weights="m.gguf", stop_ids=[])

    assert warnings == [
        "gguf/Modelfile: Ollama's prompt differs from the model's own with a system prompt and several turns."
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content }} ({{ m.content | length }}){% endfor %}",
        "{{ raise_exception('never') }}",
    ],
    ids=["changes the content", "counts", "raises"],
)
def test_a_template_that_go_cannot_say_is_left_out_with_a_warning(template: str) -> None:
    tokenizer: Any = tokenizer_of(FAMILIES["qwen 3"])
    tokenizer.chat_template = template
    text, warnings = modelfile(tokenizer, weights="m.gguf", stop_ids=[])

    assert "TEMPLATE" not in text
    assert "no TEMPLATE" in warnings[0]


def test_a_model_without_a_chat_template_goes_on_from_the_prompt() -> None:
    tokenizer: Any = tokenizer_of(FAMILIES["qwen 3"])
    tokenizer.chat_template = None

    assert template_in(modelfile(tokenizer, weights="m.gguf", stop_ids=[])[0]) == "{{ .Prompt }}"


def test_a_beginning_that_the_runtime_adds_is_not_said_twice() -> None:
    tokenizer: Any = tokenizer_of(FAMILIES["llama 3"])
    assert (shape := chat_shape(tokenizer)) is not None
    assert shape.head == tokenizer.bos_token  # this tokenizer adds none

    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    assert (shape := chat_shape(tokenizer)) is not None
    assert shape.head == ""
