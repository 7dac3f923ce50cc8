"""What is trained on: exactly what the model has to generate, its end-of-turn token included, for any chat template."""

# ruff: noqa: RUF001 - DeepSeek writes its tokens with full-width bars

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import LossOn
from finetune_trainer.data.examples import Call, Conversation, Example, PromptCompletion, Text, Turn
from finetune_trainer.data.tokenize import IGNORED, Encoded, Encoder, padding_token
from finetune_trainer.errors import TrainerError
from tests.support.chat_templates import FAMILIES, Family, tokenizer_of

TWO_TURNS = Conversation(
    (
        Turn("user", "First question?"),
        Turn("assistant", " First answer. "),
        Turn("user", "Second question?"),
        Turn("assistant", "Second answer."),
    )
)
WITH_SYSTEM = Conversation((Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "So.")))
WITH_REASONING = Conversation(
    (
        Turn("user", "One?"),
        Turn("assistant", "<think>\nold thought\n</think>\n\nOne."),
        Turn("user", "Two?"),
        Turn("assistant", "<think>\nnew thought\n</think>\n\nTwo."),
    )
)


def encode(tokenizer: Any, example: Example, loss: LossOn = LossOn.ASSISTANT) -> Encoded:
    shape = {Conversation: DatasetFormat.MESSAGES, PromptCompletion: DatasetFormat.PROMPT_COMPLETION}
    encoder = Encoder(tokenizer, shape=shape.get(type(example), DatasetFormat.TEXT), loss=loss)
    return encoder.encode([("data.jsonl line 7", example)])[0]


def trained(tokenizer: Any, encoded: Encoded) -> list[str]:
    """Return the text of each run of trained tokens."""
    runs: list[list[int]] = []
    for before, label in zip([IGNORED, *encoded.labels], encoded.labels, strict=False):
        if label != IGNORED:
            runs = [*runs, []] if before == IGNORED else runs
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("family", "answers"),
    [
        ("chatml with a default system prompt", [" First answer. <|im_end|>", "Second answer.<|im_end|>"]),
        ("llama 3", ["First answer.<|eot_id|>", "Second answer.<|eot_id|>"]),
        ("mistral", [" First answer.</s>", " Second answer.</s>"]),
        ("llama 2", [" First answer. </s>", " Second answer. </s>"]),
        ("gemma", ["First answer.<end_of_turn>", "Second answer.<end_of_turn>"]),
        ("phi 3", [" First answer. <|end|>", "Second answer.<|end|>"]),
        ("qwen 3", [" First answer. <|im_end|>", "<think>\n\n</think>\n\nSecond answer.<|im_end|>"]),
        ("deepseek r1", [" First answer. <｜end▁of▁sentence｜>", "Second answer.<｜end▁of▁sentence｜>"]),
    ],
)
def test_every_answer_is_trained_on_up_to_its_stop_token(family: str, answers: list[str]) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    encoded = encode(tokenizer, TWO_TURNS)
    assert trained(tokenizer, encoded) == answers
    assert trained(tokenizer, encode(tokenizer, TWO_TURNS, LossOn.COMPLETION)) == answers[-1:]
    assert encode(tokenizer, TWO_TURNS, LossOn.ALL).labels == encoded.input_ids


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gemma"}))
def test_a_system_turn_is_never_trained_on(family: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    (answer,) = trained(tokenizer, encode(tokenizer, WITH_SYSTEM))
    assert "So." in answer
    assert "brief" not in answer


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_comes_before_the_answer_is_what_generation_starts_from(family: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    asked = Conversation(TWO_TURNS.turns[2:])
    encoded = encode(tokenizer, asked)
    before = tokenizer.decode([token for token, label in zip(*_columns(encoded), strict=True) if label == IGNORED])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Second question?"}], tokenize=False, add_generation_prompt=True
    )
    # DeepSeek's prompt opens a thought, which its history leaves out.
    assert before.startswith(prompt.removesuffix("<think>\n"))


def _columns(encoded: Encoded) -> tuple[list[int], list[int]]:
    return encoded.input_ids, encoded.labels


@pytest.mark.parametrize(
    ("family", "answers"),
    [
        ("qwen 3", ["One.<|im_end|>", "<think>\nnew thought\n</think>\n\nTwo.<|im_end|>"]),
        ("deepseek r1", ["\n\nOne.<｜end▁of▁sentence｜>", "\n\nTwo.<｜end▁of▁sentence｜>"]),
    ],
)
def test_reasoning_that_the_template_drops_is_not_missed(family: str, answers: list[str]) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    assert trained(tokenizer, encode(tokenizer, WITH_REASONING)) == answers


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("cohere2", ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|END_RESPONSE|>")),
        ("gemma3", ("<bos>", "<end_of_turn>", "<start_of_turn>")),
        ("lfm2", ("<|startoftext|>", "<|im_end|>", "<|im_start|>")),
        ("llama3", ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")),
        ("qwen2_5", ("<|endoftext|>", "<|im_end|>", "<|im_start|>")),
        ("qwen3_instruct_2507", ("<|endoftext|>", "<|im_end|>", "<|im_start|>")),
    ],
)
def test_masks_agree_with_the_templates_that_trl_has_marked_by_hand(family: str, tokens: tuple[str, ...]) -> None:
    folder = Path(str(files("trl"))) / "chat_templates"
    tokenizer = tokenizer_of(Family((folder / f"{family}.jinja").read_text(), tokens))
    marked = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in TWO_TURNS.turns],
        chat_template=(folder / f"{family}_training.jinja").read_text(),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    theirs = [token for token, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask]
    ours = [label for label in encode(tokenizer, TWO_TURNS).labels if label != IGNORED]
    # Theirs also train on the newline after the stop token, which nothing ever generates.
    assert "".join(tokenizer.decode(ours).split()) == "".join(tokenizer.decode(theirs).split())


def test_turns_before_the_last_may_end_with_another_token() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + ('<|return|>' if loop.last else '<|end|>') }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = tokenizer_of(Family(template, ("<|start|>", "<|return|>", "<|end|>")))
    assert trained(tokenizer, encode(tokenizer, TWO_TURNS)) == [" First answer. <|end|>", "Second answer.<|return|>"]


def test_contents_that_look_like_the_template_do_not_confuse_it() -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml with a default system prompt"])
    tricky = Conversation(
        (
            Turn("user", "assistant\nassistant\nSo."),
            Turn("assistant", "So."),
            Turn("user", "So."),
            Turn("assistant", "So."),
        )
    )
    assert trained(tokenizer, encode(tokenizer, tricky)) == ["So.<|im_end|>", "So.<|im_end|>"]


def test_letters_of_several_tokens_are_wholly_trained_on() -> None:
    tokenizer = tokenizer_of(FAMILIES["llama 3"])
    encoded = encode(tokenizer, Conversation((Turn("user", "Ça va?"), Turn("assistant", "🦙👩🏽‍🔬 oui"))))
    assert trained(tokenizer, encoded) == ["🦙👩🏽‍🔬 oui<|eot_id|>"]


@pytest.mark.parametrize(
    ("template", "code", "says"),
    [
        (None, ExitCode.CHAT_TEMPLATE_MISSING, "no chat template: use an instruction-tuned model"),
        (
            "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}",
            ExitCode.MODEL_INVALID,
            "without a token to stop at",
        ),
        (
            "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}{{ eos_token }}",
            ExitCode.MODEL_INVALID,
            "ends not every turn of the assistant with a token",
        ),
        (
            "{% for m in messages %}{{ m.role + ':' + m.content | reverse + eos_token }}{% endfor %}",
            ExitCode.MODEL_INVALID,
            "leaves out what the assistant says",
        ),
        (
            FAMILIES["gemma"].template,
            ExitCode.DATASET_INVALID,
            "line 7: is refused by the model's chat template: System",
        ),
    ],
    ids=["none", "no stop token", "stop token only at the end", "contents changed", "system turn refused"],
)
def test_a_template_that_cannot_be_trained_with(template: str | None, code: ExitCode, says: str) -> None:
    tokens = ("<|im_start|>", "<|im_end|>", "<bos>", "<end_of_turn>")
    tokenizer = tokenizer_of(Family(template or "", tokens))
    example = Conversation((Turn("system", "Hm."), *TWO_TURNS.turns))
    with pytest.raises(TrainerError) as caught:
        encode(tokenizer, example)
    assert caught.value.code == code
    assert says in caught.value.message


def test_a_prompt_and_its_completion_are_joined_as_they_are() -> None:
    tokenizer = tokenizer_of(FAMILIES["phi 3"])
    example = PromptCompletion("The capital of France is", " Paris.")
    encoded = encode(tokenizer, example)
    assert tokenizer.decode(encoded.input_ids) == "The capital of France is Paris.<|end|>"
    assert trained(tokenizer, encoded) == [" Paris.<|end|>"]
    assert encode(tokenizer, example, LossOn.ALL).labels == encoded.input_ids


def test_text_is_trained_on_as_a_whole_and_ends() -> None:
    tokenizer = tokenizer_of(FAMILIES["phi 3"])
    encoded = encode(tokenizer, Text("All of it."), LossOn.ALL)
    assert trained(tokenizer, encoded) == ["All of it.<|end|>"]


def test_a_tokenizer_file_that_cuts_and_pads_is_not_obeyed() -> None:
    tokenizer = tokenizer_of(FAMILIES["phi 3"])
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert len(encode(tokenizer, Text("one two three four five six"), LossOn.ALL).input_ids) == 7


def test_padding_equal_to_the_stop_token_takes_nothing_from_the_labels() -> None:
    tokenizer = tokenizer_of(FAMILIES["chatml with a default system prompt"])
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode(tokenizer, WITH_SYSTEM)
    assert padding_token(tokenizer) == tokenizer.eos_token_id
    assert encoded.labels[-2] == tokenizer.eos_token_id  # the template's newline follows
    tokenizer.pad_token = None
    assert padding_token(tokenizer) == tokenizer.eos_token_id


TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
        }
    ]
)
WITH_TOOLS = Conversation(
    (
        Turn("user", "Rain?"),
        Turn("assistant", "", (Call("weather", '{"city": "Oslo"}', "call00001"),)),
        Turn("tool", '{"rain": true}', name="weather", call_id="call00001"),
        Turn("assistant", "Yes."),
        Turn("user", "In Rome?"),
        Turn("assistant", "", (Call("weather", '{"city": "Rome"}', "call00002"),)),
    ),
    TOOLS,
)
QWEN = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>")


def by_trl(family: str, tokens: tuple[str, ...]) -> Any:
    """Return a tokenizer with a template that TRL ships."""
    return tokenizer_of(Family((Path(str(files("trl"))) / "chat_templates" / f"{family}.jinja").read_text(), tokens))


@pytest.mark.parametrize(
    ("family", "tokens", "answers"),
    [
        (
            "qwen2_5",
            QWEN,
            [
                '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
                "Yes.<|im_end|>",
                '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
            ],
        ),
        (
            "qwen3",
            QWEN,
            [
                '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
                "Yes.<|im_end|>",
                # Qwen 3 writes the last turn with an empty thought, and turns before it without.
                '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
                "<|im_end|>",
            ],
        ),
        (
            "llama3_1",
            ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
            [
                '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
                "Yes.<|eot_id|>",
                '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>',
            ],
        ),
        (
            # Each kind of turn ends with another token.
            "gptoss",
            ("<|start|>", "<|return|>", "<|end|>", "<|call|>", "<|message|>", "<|channel|>"),
            [
                ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
                "<|channel|>final<|message|>Yes.<|end|>",
                ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
            ],
        ),
    ],
)
def test_calls_of_tools_are_trained_on_as_the_template_writes_them(
    family: str, tokens: tuple[str, ...], answers: list[str]
) -> None:
    tokenizer = by_trl(family, tokens)
    encoded = encode(tokenizer, WITH_TOOLS)
    assert trained(tokenizer, encoded) == answers
    assert trained(tokenizer, encode(tokenizer, WITH_TOOLS, LossOn.COMPLETION)) == answers[-1:]
    assert encoded.left_out == ()
    assert "weather" in tokenizer.decode(encoded.input_ids).partition("Rain?")[0]


def test_arguments_are_given_as_text_to_a_template_that_wants_text() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content }}{% for c in m.tool_calls %}"
        "{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = tokenizer_of(Family(template, ("<s>", "</s>")))
    assert trained(tokenizer, encode(tokenizer, WITH_TOOLS))[0] == 'weather({"city": "Oslo"})</s>'


def test_what_can_be_asked_again_is_given_as_the_template_takes_it() -> None:
    asked = Conversation(WITH_TOOLS.turns[:4], TOOLS)

    def question(tokenizer: Any) -> Any:
        return Encoder(tokenizer, shape=DatasetFormat.MESSAGES, loss=LossOn.ASSISTANT).question(asked)

    qwen, deepseek = by_trl("qwen2_5", QWEN), by_trl("deepseekv3", ("<s>", "<｜end▁of▁sentence｜>"))
    arguments = [one[1]["tool_calls"][0]["function"]["arguments"] for one in (question(qwen), question(deepseek))]
    assert arguments == [{"city": "Oslo"}, '{"city": "Oslo"}']
    refuses = (
        "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% if m.role == 'tool' %}"
        "{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
    )
    assert question(tokenizer_of(Family(refuses, ("<s>", "</s>")))) is None


def test_what_a_template_drops_is_told() -> None:
    mistral = tokenizer_of(FAMILIES["mistral"])
    assert encode(mistral, WITH_SYSTEM).left_out == ("system",)
    no_tools = tokenizer_of(FAMILIES["phi 3"])
    answered = Conversation((Turn("user", "Rain?"), Turn("assistant", "No.")), TOOLS)
    assert encode(no_tools, answered).left_out == ("tools",)
    assert encode(no_tools, Conversation(WITH_SYSTEM.turns)).left_out == ()


def test_a_template_that_drops_calls_of_tools_cannot_teach_them() -> None:
    with pytest.raises(TrainerError, match="leaves out the calls of tools: use a model whose template knows") as caught:
        encode(tokenizer_of(FAMILIES["phi 3"]), WITH_TOOLS)
    assert caught.value.code == ExitCode.MODEL_INVALID


@pytest.mark.parametrize(
    ("template", "code", "says"),
    [
        (
            "{{ 1 // 0 }}",
            ExitCode.MODEL_INVALID,
            "template fails on a question and its answer (is refused by the model's chat template: integer division",
        ),
        ("{% if %}", ExitCode.MODEL_INVALID, "template fails on a question and its answer (is refused by the model's"),
        (
            "{% for m in messages %}{{ m.content + eos_token }}{% if 'Third' in m.content %}{{ 1 + 'a' }}{% endif %}"
            "{% endfor %}",
            ExitCode.DATASET_INVALID,
            "data.jsonl line 7: is refused by the model's chat template: unsupported operand",
        ),
    ],
    ids=["always", "syntax", "for one example"],
)
def test_a_template_that_raises(template: str, code: ExitCode, says: str) -> None:
    with pytest.raises(TrainerError) as caught:
        encode(
            tokenizer_of(Family(template, ("<s>", "</s>"))),
            Conversation((Turn("user", "Third"), Turn("assistant", "No."))),
        )
    assert caught.value.code == code
    assert says in caught.value.message
