"""The prepare stage with a real tokenizer: what it leaves in storage, what it says, and how it refuses."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TerminationMessage
from finetune_contract.paths import CHECKPOINT_MANIFEST
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.checkpoints.resume_check import identity
from finetune_trainer.errors import TrainerError
from finetune_trainer.prepare import run_prepare
from finetune_trainer.storage import open_store
from finetune_trainer.storage.folders import upload_folder
from tests.support.datasets import chat, chats, lines, write_lines
from tests.support.models import tiny_llama
from tests.support.preparing import machine, run_config

GIB = 1 << 30


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path) -> str:
    return f"file://{tmp_path}"


def prepare(config: RunConfig, folder: Path) -> Prepared:
    """Prepare and return prepared.json, whose hash is what was reported."""
    result, sha256 = run_prepare(config, machine(folder))
    content = open_store(config.run_uri, Use.OUTPUT).read(f"{config.run_uri}/prepared/prepared.json")
    assert hashlib.sha256(content).hexdigest() == sha256
    prepared = Prepared.model_validate_json(content)
    assert (prepared.dataset, prepared.estimate, prepared.resolved) == (
        result.dataset,
        result.estimate,
        result.resolved,
    )
    return prepared


def rows(config: RunConfig, prepared: Prepared, split: str, folder: Path) -> list[dict[str, list[int]]]:
    """Read the shards of a part back, holding each against its sha256."""
    found = []
    for shard in prepared.shards:
        if shard.split == split:
            path = folder / Path(shard.path).name
            assert (
                open_store(config.run_uri, Use.OUTPUT).download(f"{config.run_uri}/{shard.path}", path) == shard.sha256
            )
            table = pq.read_table(path)
            assert table.num_rows == shard.rows
            found += table.to_pylist()
    return found


@pytest.mark.usefixtures("s3")
def test_a_run_on_s3_from_the_model_to_the_shards(bucket: str, model: Path, tmp_path: Path) -> None:
    store = open_store(bucket, Use.OUTPUT)
    upload_folder(store, model, f"{bucket}/model")
    store.write(f"{bucket}/data.jsonl", lines(chats(300)))
    config = run_config(bucket, model=f"{bucket}/model")
    prepared = prepare(config, tmp_path)

    summary = prepared.dataset
    assert (summary.format, summary.examples, summary.duplicates) == ("messages", 300, 0)
    assert summary.train_examples + summary.validation_examples == 300
    assert summary.warnings == ()
    train = rows(config, prepared, "train", tmp_path)
    assert len(train) == summary.train_examples
    assert sum(len(row["input_ids"]) for row in train) == summary.train_tokens
    assert sum(label != -100 for row in train for label in row["labels"]) == summary.loss_tokens
    assert len(rows(config, prepared, "validation", tmp_path)) == summary.validation_examples
    assert sum(prepared.token_histogram.values()) == 300
    assert prepared.first_example.endswith(
        "What is 0 times 1?<|im_end|>\n<|im_start|>assistant\n⟦0 times 1 is 0.<|im_end|>⟧\n"
    )

    chosen = prepared.resolved
    assert (chosen.learning_rate, chosen.lora_alpha, chosen.max_sequence_length) == (2e-4, 16, 128)
    assert chosen.total_steps == 3 * -(-summary.train_examples // 16)
    assert set(chosen.because) >= {"learningRate", "maxSequenceLength", "microBatchSize", "totalSteps", "loraAlpha"}
    held_out = [json.loads(line) for line in store.read(f"{config.run_uri}/{prepared.held_out}").splitlines()]
    assert all([turn["role"] for turn in one["messages"]] == ["user"] and one["answer"] for one in held_out)
    assert len(held_out) == min(summary.validation_examples, 32)
    # Only configuration and tokenizer were fetched.
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert list((tmp_path / "work").iterdir()) == []


def test_a_second_attempt_does_not_prepare_again(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(20))
    config = run_config(place, model=f"file://{model}")
    first = run_prepare(config, machine(tmp_path))
    (tmp_path / "data.jsonl").unlink()
    assert run_prepare(config, machine(tmp_path)) == first
    changed = config.model_copy(update={"config_hash": "another"})
    with pytest.raises(TrainerError, match=r"Nothing lies at dataset\.uri"):
        run_prepare(changed, machine(tmp_path))


def test_as_a_process_it_loads_no_torch(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(20))
    (tmp_path / "config.json").write_text(run_config(place, model=f"file://{model}").to_json())
    code = (
        "import sys; from finetune_trainer.__main__ import main; code = main(['prepare', '--config', sys.argv[1]]);"
        "print([name for name in sys.modules if name.startswith('torch') and sys.modules[name]]); sys.exit(code)"
    )
    environment = {"FINETUNE_WORK": str(tmp_path / "work"), "FINETUNE_TERMINATION_LOG": str(tmp_path / "message")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.json")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (ExitCode.SUCCESS, "[]"), done.stderr
    assert "PyTorch" not in done.stderr


def test_equal_inputs_give_equal_bytes(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(50))
    config = run_config(place, model=f"file://{model}")
    again = run_config(place, model=f"file://{model}", output={"uri": f"{place}/elsewhere"})
    assert prepare(config, tmp_path) == prepare(again, tmp_path)


def test_the_folder_of_another_job_is_left_alone(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(20))
    run_prepare(run_config(place, model=f"file://{model}"), machine(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrainerError, match=r"already belongs to another job .* choose another output\.uri") as caught:
        run_prepare(run_config(place, model=f"file://{model}", uid="of-another-job"), machine(tmp_path))
    assert caught.value.code == ExitCode.OUTPUT_EXISTS
    assert sorted(tmp_path.rglob("*")) == before


def test_results_of_another_job_count_even_without_an_owner(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(20))
    write_lines(tmp_path / "out" / "run-1" / "manifest.json", [{"jobUid": "of-another-job"}])
    with pytest.raises(TrainerError, match="already belongs to another job") as caught:
        run_prepare(run_config(place, model=f"file://{model}"), machine(tmp_path))
    assert caught.value.code == ExitCode.OUTPUT_EXISTS


@pytest.mark.parametrize(
    ("records", "shape", "loss"),
    [
        (
            [{"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(20)],
            "promptCompletion",
            "assistant",
        ),
        ([{"instruction": f"Add one to {n}.", "output": f"{n + 1}"} for n in range(20)], "instruction", "assistant"),
        ([{"text": f"{n} plus one is {n + 1}."} for n in range(20)], "text", "all"),
    ],
    ids=["promptCompletion", "instruction", "text"],
)
def test_every_format_is_prepared(
    *, place: str, model: Path, tmp_path: Path, records: list[Any], shape: str, loss: str
) -> None:
    write_lines(tmp_path / "data.jsonl", records)
    config = run_config(place, model=f"file://{model}")
    prepared = prepare(config, tmp_path)
    assert (prepared.dataset.format, prepared.resolved.loss) == (shape, loss)
    every = rows(config, prepared, "train", tmp_path)
    assert all(row["input_ids"][-1] == 2 or shape == "instruction" for row in every)  # <|im_end|>, then a newline
    assert all(row["labels"][0] != -100 for row in every) is (shape == "text")
    asked = (tmp_path / "out" / "run-1" / prepared.held_out).read_text()
    assert bool(asked) is (shape != "text")


def test_examples_are_cut_and_those_without_an_answer_left_out(place: str, model: Path, tmp_path: Path) -> None:
    short = chats(40)
    long_answers = [chat(f"Speak {n}", "word " * 100) for n in range(10)]
    long_questions = [chat(f"{n} " + "why " * 100, "So.") for n in range(10)]
    write_lines(tmp_path / "data.jsonl", [*short, *long_answers, *long_questions])
    config = run_config(place, model=f"file://{model}", hyperparameters={"maxSequenceLength": 96})
    prepared = prepare(config, tmp_path)
    summary = prepared.dataset
    assert (summary.examples, summary.truncated, summary.dropped) == (60, 20, 10)
    assert summary.train_examples + summary.validation_examples == 50
    assert max(len(row["input_ids"]) for row in rows(config, prepared, "train", tmp_path)) == 96
    assert any("10 of 60 examples were left out: at maxSequenceLength 96" in warning for warning in summary.warnings)
    assert any("20 of 60 examples (33%) are cut" in warning for warning in summary.warnings)


def test_warnings_say_what_an_expert_would_change(place: str, model: Path, tmp_path: Path) -> None:
    formatted_twice = chat("<|im_start|>user\nHi<|im_end|>", "Ho")
    write_lines(tmp_path / "data.jsonl", [*chats(20), *chats(20), chat("a", "b", system="Be brief."), formatted_twice])
    config = run_config(place, model=f"file://{model}", hyperparameters={"epochs": 9, "learningRate": 0.01})
    warnings = prepare(config, tmp_path).dataset.warnings
    wanted = [
        "1 examples contain the chat template's own tokens",
        "learningRate 0.01 is high for LoRA: 1e-05 to 0.0005 is usual.",
        "Only 42 examples: below 200 a model memorises",
        "9 epochs over",
        "20 of 42 examples equal an earlier one",
        "2 different system prompts (none counts as one)",
    ]
    assert [next((want for want in wanted if want in warning), warning) for warning in warnings] == wanted
    assert all(len(warning) <= 200 for warning in warnings)


def test_sources_a_validation_set_and_the_counts_about_them(place: str, model: Path, tmp_path: Path) -> None:
    spoken = [
        {"conversations": [{"from": "human", "value": f"Café {n}?"}, {"from": "gpt", "value": "Oui." * n}]}
        for n in range(1, 21)
    ]
    (tmp_path / "spoken.json.gz").write_bytes(gzip.compress(json.dumps(spoken).encode()))
    write_lines(tmp_path / "chats.jsonl", [*chats(40), chat("What is lost?", "A letter \ufffd.")])
    write_lines(tmp_path / "validation.jsonl", [chat("what is 7 times 8?", "56"), chat("Is this new?", "It is.")])
    sources = [{"uri": f"{place}/spoken.json.gz", "weight": 2}, {"uri": f"{place}/chats.jsonl"}]
    dataset = {"sources": sources, "validation": {"uri": f"{place}/validation.jsonl"}, "systemPrompt": "Be brief."}
    config = run_config(place, model=f"file://{model}", dataset=dataset)
    prepared = prepare(config, tmp_path)
    summary = prepared.dataset
    assert (summary.format, summary.examples, summary.validation_examples) == ("messages", 63, 2)
    assert summary.train_examples == 2 * 20 + 40
    assert (summary.leaked, summary.damaged, summary.duplicates) == (1, 1, 0)
    assert any(
        warning.startswith("1 of 63 examples have damaged letters (U+FFFD in 1)") for warning in summary.warnings
    )
    assert any("stands in the validation set: they are not trained on" in warning for warning in summary.warnings)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in prepared.first_example
    asked = (tmp_path / "out" / "run-1" / prepared.held_out).read_text().splitlines()
    assert {json.loads(line)["answer"] for line in asked} == {"56", "It is."}


def test_a_few_answers_are_counted_for_the_report(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", [chat(f"Is {n} even?", "yes" if n % 10 else "no") for n in range(60)])
    prepared = prepare(run_config(place, model=f"file://{model}"), tmp_path)
    assert prepared.label_histogram == {"yes": 54, "no": 6}
    assert any("90% of the answers are 'yes'" in warning for warning in prepared.dataset.warnings)


def test_tools_that_the_template_does_not_know_are_told(place: str, model: Path, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "clock"}}]
    write_lines(tmp_path / "data.jsonl", [{**one, "tools": tools} for one in chats(20)])
    prepared = prepare(run_config(place, model=f"file://{model}"), tmp_path)
    assert any("leaves out tools or their answers in 20 examples" in warning for warning in prepared.dataset.warnings)


@pytest.mark.parametrize(
    ("records", "spec", "device", "code", "says"),
    [
        (chats(1), {}, {}, ExitCode.DATASET_TOO_SMALL, "has 1 example, and no other"),
        (
            chats(20),
            {"hyperparameters": {"maxSequenceLength": 16}},
            {},
            ExitCode.EXAMPLES_TOO_LONG,
            "At maxSequenceLength 16 nothing to train on remains of any of the training part's",
        ),
        (
            chats(20),
            {"hyperparameters": {"maxSequenceLength": 4096}},
            {},
            ExitCode.CONFIG_INVALID,
            "hyperparameters.maxSequenceLength is 4096, but the model holds 2048 tokens",
        ),
        (
            chats(20),
            {"hyperparameters": {"batchSize": 12, "microBatchSize": 5}},
            {},
            ExitCode.CONFIG_INVALID,
            "hyperparameters.microBatchSize is 5, which does not divide 12 examples a GPU",
        ),
        (
            chats(20),
            {"hyperparameters": {"batchSize": 9}},
            {"gpus": 2},
            ExitCode.CONFIG_INVALID,
            "hyperparameters.batchSize is 9, which 2 GPUs cannot share evenly",
        ),
        (
            [{"text": f"text {n}"} for n in range(20)],
            {"hyperparameters": {"loss": "assistant"}},
            {},
            ExitCode.CONFIG_INVALID,
            "hyperparameters.loss is assistant, but text has no answers",
        ),
        (
            [{"text": f"text {n}"} for n in range(20)],
            {"evaluation": {"metrics": ["rouge"]}},
            {},
            ExitCode.CONFIG_INVALID,
            "evaluation.metrics: the data are plain text, which has no questions to answer",
        ),
        (
            chats(20),
            {"evaluation": {"metrics": ["rouge"], "gates": [{"metric": "exactMatch", "min": 0.5}]}},
            {},
            ExitCode.CONFIG_INVALID,
            "evaluation.gates: exactMatch is not measured: add it to evaluation.metrics",
        ),
        (
            chats(20),
            {"evaluation": {"metrics": ["regex"]}},
            {},
            ExitCode.CONFIG_INVALID,
            "evaluation.metrics: regex needs evaluation.regex, which is not set",
        ),
        (
            chats(20),
            {"evaluation": {"forgetting": {"uri": "file:///nowhere.txt"}}},
            {},
            ExitCode.DATASET_NOT_FOUND,
            "evaluation.forgetting.uri: nothing lies at file:///nowhere.txt",
        ),
        (
            chats(20),
            {"evaluation": {"metrics": ["jsonSchema"], "jsonSchema": {"type": "objekt"}}},
            {},
            ExitCode.CONFIG_INVALID,
            "evaluation.jsonSchema cannot be used: 'objekt' is not valid under any of the given schemas at $.type",
        ),
        (
            chats(20),
            {},
            {"gpus": 1, "gpuMemoryBytes": GIB // 2},
            ExitCode.WILL_NOT_FIT,
            "microBatchSize 1 needs about 0.8 GiB, the GPU has 0.5 GiB (weights 0.0, adapter 0.0,",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}]}],
            {},
            {},
            ExitCode.DATASET_INVALID,
            "data.jsonl line 1: has no assistant turn",
        ),
    ],
    ids=[
        "one example",
        "all too long",
        "longer than the model",
        "micro-batch",
        "GPUs",
        "loss on text",
        "answers on text",
        "gate on nothing",
        "no pattern",
        "no general text",
        "no JSON Schema",
        "does not fit",
        "no answer",
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    *, place: str, model: Path, tmp_path: Path, records: list[Any], spec: Any, device: Any, code: ExitCode, says: str
) -> None:
    write_lines(tmp_path / "data.jsonl", records)
    with pytest.raises(TrainerError) as caught:
        run_prepare(run_config(place, model=f"file://{model}", device=device, **spec), machine(tmp_path))
    assert caught.value.code == code
    assert says in caught.value.message
    assert not (tmp_path / "out" / "run-1" / "prepared").exists()


def test_chat_data_needs_a_chat_template(place: str, model: Path, tmp_path: Path) -> None:
    import shutil

    base = shutil.copytree(model, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    write_lines(tmp_path / "data.jsonl", chats(20))
    with pytest.raises(TrainerError, match="use an instruction-tuned model") as caught:
        run_prepare(run_config(place, model=f"file://{base}"), machine(tmp_path))
    assert caught.value.code == ExitCode.CHAT_TEMPLATE_MISSING


def test_the_result_fits_a_termination_message(place: str, model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(20))
    result, sha256 = run_prepare(run_config(place, model=f"file://{model}"), machine(tmp_path))
    message = TerminationMessage(stage="prepare", exit_code=0, reason="Completed", sha256=sha256, prepared=result)
    decoded = TerminationMessage.decode(message.encode())
    assert decoded is not None
    assert decoded.prepared is not None
    assert decoded.prepared.dataset == result.dataset


@pytest.mark.parametrize(
    ("held", "says"),
    [
        pytest.param({}, None, id="fits"),
        pytest.param({"identity": {"method": "Full"}}, "was trained with another method", id="another method"),
        pytest.param({"step": 1000}, "stands at step 1000, this run ends at ", id="nothing left to train"),
        pytest.param(None, "there is no undamaged checkpoint at file://", id="nothing there"),
    ],
)
def test_a_checkpoint_to_go_on_from_is_checked_before_a_gpu_is_asked_for(
    held: dict[str, Any] | None, says: str | None, model: Path, place: str, tmp_path: Path
) -> None:
    write_lines(tmp_path / "data.jsonl", chats(40))
    first = run_config(place, model=f"file://{model}")
    same = identity(first, prepare(first, tmp_path))
    if held is not None:
        found = {"jobUid": "a", "configHash": "b", "attempt": 1, "step": 1, "files": [], **held}
        found["identity"] = {**same, **held.get("identity", {})}
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / CHECKPOINT_MANIFEST).write_text(json.dumps(found))

    going_on = run_config(
        f"{place}",
        model=f"file://{model}",
        output={"uri": f"{place}/out-2"},
        checkpoint={"resumeFrom": f"{place}/other"},
    )

    if says is None:
        prepare(going_on, tmp_path)
        return
    with pytest.raises(TrainerError, match=says) as caught:
        prepare(going_on, tmp_path)
    assert caught.value.code is ExitCode.CHECKPOINT_UNUSABLE
