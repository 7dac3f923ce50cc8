"""Base against tuned: what is asked, what is kept, and how answers are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.dataset import Asked, Data, Question, batches_by_length
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.evaluate import BASE_RESULTS, TUNED_RESULTS, sample
from finetune_trainer.evaluation.generate import answers, batched
from finetune_trainer.model.build import load_base
from finetune_trainer.preemption import PREEMPTION
from tests.support.models import smollm2
from tests.support.prepared import tiny_model
from tests.support.training import THIRD_PARTY, forget_preemption, make_case, train

pytestmark = THIRD_PARTY

ASKED: dict[str, Any] = {
    "evaluation": {
        "metrics": ["exactMatch", "regex", "jsonValid", "jsonSchema", "rouge"],
        "regex": {"pattern": r"^\d+$"},
        "jsonSchema": {"type": "integer"},
        "maxNewTokens": 3,
        "samples": {"prompts": ["1 plus 1"]},
    }
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(model_folder: Path) -> Any:
    return load_base(model_folder, dtype=torch.float32)


@pytest.fixture
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


def ask(model: Any, tokenizer: Any, prompts: list[Any], **limits: int) -> list[str]:
    asked = [prompt if isinstance(prompt, Asked) else Asked(prompt) for prompt in prompts]
    return answers(model, tokenizer, asked, **{"max_new_tokens": 6, "max_prompt_tokens": 200, **limits})


def test_an_answer_does_not_depend_on_its_batch(model: Any, tokenizer: Any) -> None:
    prompts = [" plus ".join(str(n) for n in range(length)) for length in (2, 9, 4, 30, 1, 3, 12, 5, 7, 20, 6)]

    together = ask(model, tokenizer, prompts)

    assert together == [ask(model, tokenizer, [prompt])[0] for prompt in prompts]


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        pytest.param([50] * 70, [32, 32, 6], id="short ones"),
        pytest.param([4000] * 20, [8, 8, 4], id="long ones"),
        pytest.param([300, 900] * 16, [16, 8, 8], id="short ones and long ones apart"),
        pytest.param([], [], id="none"),
    ],
)
def test_prompts_are_answered_as_many_at_once_as_there_is_room_for(lengths: list[int], sizes: list[int]) -> None:
    batches = list(batched(lengths, max_new_tokens=24))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert [len(batch) for batch in batches] == sizes


def test_an_answer_of_a_real_model_does_not_depend_on_its_batch() -> None:
    """In float32: in bfloat16 the size of a batch changes roundings, and with them words that are equally likely."""
    torch.set_num_threads(1)  # shared cores: two threads mostly wait for each other
    model, tokenizer = load_base(smollm2(), dtype=torch.float32), AutoTokenizer.from_pretrained(smollm2())
    texts = ("Count to five.", "Write a haiku about leaves that fall on a quiet pond at dusk.", "What is gravity?")
    prompts = [[{"role": "user", "content": text}] for text in texts]

    together = ask(model, tokenizer, prompts, max_new_tokens=12)

    assert together == [ask(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in prompts]


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_its_batch_in_any_family(family: str, tokenizer: Any) -> None:
    """Padding on the left moves positions, windows and experts only where a model's code is wrong."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            family,
            **{**({} if family == "gpt2" else {**shape, "num_key_value_heads": 2}), **FAMILIES[family]},
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    prompts = [" plus ".join(str(n) for n in range(length)) for length in (2, 9, 30, 1)]

    assert ask(model, tokenizer, prompts) == [ask(model, tokenizer, [prompt])[0] for prompt in prompts]


def test_answers_are_greedy_whatever_the_model_says(model: Any, tokenizer: Any) -> None:
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0

    assert ask(model, tokenizer, ["1 plus 2"]) == ask(model, tokenizer, ["1 plus 2"])


def test_a_chat_is_asked_through_its_template(model: Any, tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "1 plus 2"}]

    assert ask(model, tokenizer, [chat]) == ask(model, tokenizer, ["user : 1 plus 2 assistant :"])


WITH_TOOLS = "{% if tools %}{{ tools | map(attribute='name') | join(' ') }} {% endif %}{{ messages[0].content }}"


def test_a_chat_is_asked_with_its_tools(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = WITH_TOOLS
    chat = Asked([{"role": "user", "content": "1 plus 2"}], tools=[{"name": "7"}, {"name": "8"}])

    assert ask(model, tokenizer, [chat]) == ask(model, tokenizer, ["7 8 1 plus 2"])
    assert ask(model, tokenizer, [chat]) != ask(model, tokenizer, ["1 plus 2"])


def test_a_chat_with_calls_of_tools_is_asked_and_reported(tmp_path: Path) -> None:
    case = make_case(tmp_path, spec=ASKED)
    held_out = case.run / "prepared/held-out.jsonl"
    call = {"type": "function", "function": {"name": "sum", "arguments": {"of": [1, 2]}}}
    turns = [
        {"role": "user", "content": "1 plus 2"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    held_out.write_text(json.dumps({"messages": turns, "answer": "3", "tools": [call]}) + "\n")

    outcome = train(case)

    assert outcome.evaluation["examples"][0]["prompt"] == turns
    assert "{&#34;name&#34;: &#34;sum&#34;" in (outcome.run / paths.REPORT).read_text()


def test_answers_leave_the_model_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    model.config.use_cache = False
    state = torch.get_rng_state()

    ask(model, tokenizer, ["1 plus 2"])

    assert model.training
    assert model.config.use_cache is False
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prompt_that_is_too_long_keeps_its_end(model: Any, tokenizer: Any) -> None:
    long = " plus ".join(["3"] * 100)

    assert ask(model, tokenizer, [long], max_prompt_tokens=9) == ask(model, tokenizer, [" plus ".join(["3"] * 5)])


def test_a_batch_that_does_not_fit_is_halved(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["1 plus 2", "3 plus 4", "5 plus 6"]
    expected = ask(model, tokenizer, prompts)
    generate, sizes = type(model).generate, []

    def fits_one(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", fits_one)

    assert ask(model, tokenizer, prompts) == expected
    assert sizes == [3, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ([Question([{"role": "user", "content": "a"}], "b")], [{"role": "user", "content": "hello"}]),
        ([Question("a", "b")], "hello"),
        ([], "hello"),
    ],
)
def test_samples_are_asked_as_the_data_are(tokenizer: Any, questions: list[Question], expected: Any) -> None:
    data = Data(train=None, validation=[], questions=questions)

    assert sample("hello", data=data, tokenizer=tokenizer) == Asked(expected)


def test_batches_hold_all_rows_within_their_budget() -> None:
    rows = [{"input_ids": [0] * length, "labels": [0] * length} for length in (5, 1, 30, 8, 8, 3, 2)]

    batches = list(batches_by_length(rows, max_tokens=16))

    assert sorted(len(row["input_ids"]) for batch in batches for row in batch) == [1, 2, 3, 5, 8, 8, 30]
    assert all(len(batch) == 1 or len(batch) * len(batch[0]["input_ids"]) <= 16 for batch in batches)


def test_the_base_model_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, spec=ASKED, total_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.train._train", _stopped)
        with pytest.raises(TrainerError):
            train(case)
    kept = json.loads((case.run / BASE_RESULTS).read_text())
    kept["measured"]["samples"] = ["from the first attempt"]
    (case.run / BASE_RESULTS).write_text(json.dumps(kept))

    second = train(case.attempt(2))

    assert second.evaluation["samples"][0]["base"] == "from the first attempt"


def _stopped(*_: object) -> None:
    raise TrainerError(ExitCode.PREEMPTED, "stopped")


def test_the_tuned_model_is_asked_once_while_its_weights_are_the_same(tmp_path: Path) -> None:
    """The pod died in the export: the next attempt has the same best weights, and takes what they said."""
    case = make_case(tmp_path, spec=ASKED, total_steps=2)
    train(case)
    (case.run / paths.MANIFEST).unlink()
    kept = json.loads((case.run / TUNED_RESULTS).read_text())
    kept["measured"]["samples"] = ["from the first attempt"]
    (case.run / TUNED_RESULTS).write_text(json.dumps(kept))

    assert train(case.attempt(2)).evaluation["samples"][0]["tuned"] == "from the first attempt"

    (case.run / TUNED_RESULTS).write_text(json.dumps({**kept, "weights": "step 1 of 2, held-out loss 9.9"}))
    (case.run / paths.MANIFEST).unlink()

    assert train(case.attempt(3)).evaluation["samples"][0]["tuned"] != "from the first attempt"


@pytest.mark.parametrize("change", [{"configHash": "other"}, {"preparedSha256": "other"}])
def test_results_of_other_settings_are_not_taken(tmp_path: Path, change: dict[str, str]) -> None:
    case = make_case(tmp_path, spec=ASKED, total_steps=2)
    measured = {"scores": {"loss": 99.0}, "answers": [], "samples": ["stale"]}
    stale = {"configHash": case.config.config_hash, "preparedSha256": case.config.prepared_sha256, "measured": measured}
    (case.run / BASE_RESULTS).write_text(json.dumps({**stale, **change}))

    assert train(case).result.evaluation.base.loss < 99  # type: ignore[union-attr, operator]


def test_the_base_is_the_same_for_every_method(tmp_path: Path) -> None:
    lora, full = (
        train(make_case(tmp_path / method, method=method, spec=ASKED, total_steps=2)) for method in ("LoRA", "Full")
    )

    assert lora.evaluation["base"] == full.evaluation["base"]


def test_a_model_that_learnt_the_answers_matches_them(tmp_path: Path) -> None:
    """Overfit on purpose: the held-out examples are trained on, by hand."""
    case = make_case(tmp_path, method="Full", spec=ASKED, total_steps=150, learning_rate=1e-2, eval_every_steps=50)
    prepared = case.run / "prepared"
    train_shard, held_out = prepared / "train-00000.parquet", prepared / "validation-00000.parquet"
    train_shard.write_bytes(held_out.read_bytes())
    text = (prepared / "prepared.json").read_text()
    shards = {shard["split"]: shard for shard in json.loads(text)["shards"]}
    text = text.replace(shards["train"]["sha256"], shards["validation"]["sha256"])
    (prepared / "prepared.json").write_text(text)
    config = case.config.model_copy(update={"prepared_sha256": None})

    outcome = train(type(case)(config, case.env, case.run))

    base, tuned = outcome.evaluation["base"], outcome.evaluation["tuned"]
    for metric in ASKED["evaluation"]["metrics"]:
        assert (base[metric], tuned[metric]) == (0.0, 1.0), metric
    assert tuned["loss"] < 0.1


def test_a_signal_stops_an_evaluation_between_two_batches(model: Any, tokenizer: Any) -> None:
    PREEMPTION.request()
    try:
        with pytest.raises(TrainerError) as failure:
            ask(model, tokenizer, ["1 plus 2"])
    finally:
        forget_preemption()
    assert failure.value.code is ExitCode.PREEMPTED
