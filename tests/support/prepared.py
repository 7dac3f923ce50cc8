"""Prepared data for trainer tests: what the prepare stage leaves in storage, made by hand from token lists.

The text is arithmetic that a model of two layers can learn a little of; lengths differ, so that padding and packing
have something to do.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from finetune_contract import paths
from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.prepared import DatasetSummary, Estimate, Prepared, Resolved, Shard
from finetune_contract.run_config import JobIdentity, RunConfig
from finetune_contract.spec import LossOn, Precision, TuningSpec
from finetune_trainer.environment import Environment

PAD, EOS = 0, 1
WORDS = ("<pad>", "<eos>", "<unk>", "user", "assistant", ":", "plus", *(str(number) for number in range(120)))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
UID = "0f6ff2a4-5c1e-4d9b-9b0e-3f6d2d6a7c11"


@dataclass(frozen=True)
class Case:
    """A run ready to be trained."""

    config: RunConfig
    env: Environment
    run: Path
    """The run's folder in storage."""

    def attempt(self, number: int) -> Case:
        """Return the same run at another attempt, on a machine of its own."""
        job = self.config.job.model_copy(update={"attempt": number})
        work = self.env.work.with_name(f"work-{number}")
        return Case(
            config=self.config.model_copy(update={"job": job}),
            env=make_environment(self.env.work.parent, work=work),
            run=self.run,
        )


def tiny_model(
    folder: Path, *, hidden_size: int = 32, intermediate_size: int = 64, tie_word_embeddings: bool = False
) -> Path:
    """Write a random Llama of two layers and 127 words: a step takes milliseconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=tie_word_embeddings,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of 127 words, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)


def make_environment(folder: Path, *, work: Path | None = None) -> Environment:
    """Return an environment whose folders lie below one."""
    work = work or folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return Environment(
        config=folder / "config.json",
        work=work,
        cache=folder / "cache",
        claims=folder / "claims",
        termination_log=work / "termination-log",
    )


def make_config(*, output_uri: str, model_uri: str, method: str = "LoRA", attempt: int = 1, **spec: Any) -> RunConfig:
    """Return a run configuration; further parts of the spec by name."""
    wanted = {
        "method": method,
        "model": {"uri": model_uri},
        "dataset": {"uri": "file:///nowhere/data.jsonl"},
        "output": {"uri": output_uri},
        **spec,
    }
    return RunConfig(
        job=JobIdentity(name="adder", namespace="default", uid=UID, attempt=attempt),
        spec=TuningSpec.model_validate(wanted),
        config_hash=hashlib.sha256(json.dumps([method, spec], sort_keys=True).encode()).hexdigest(),
    )


def make_resolved(**changes: Any) -> Resolved:
    """Return resolved values of a small run in float32."""
    values: dict[str, Any] = {
        "learning_rate": 5e-3,
        "total_steps": 6,
        "batch_size": 8,
        "micro_batch_size": 4,
        "max_sequence_length": 64,
        "packing": False,
        "precision": Precision.FLOAT32,
        "gradient_checkpointing": False,
        "loss": LossOn.ASSISTANT,
        "eval_every_steps": 2,
        "checkpoint_every_steps": 2,
        "lora_alpha": 16,
        "because": {"totalSteps": "a test"},
    }
    return Resolved(**{**values, **changes})


def write_prepared(
    run: Path, *, tokenizer: Any, resolved: Resolved, train: int = 29, validation: int = 5, pairs: bool = False
) -> str:
    """Write shards and prepared.json into a run's folder; return its sha256. `pairs` have a wrong answer, too."""
    folder = run / paths.PREPARED_DIR
    folder.mkdir(parents=True, exist_ok=True)
    sums = [_sum(number) for number in range(train + validation)]
    shards = (
        _shard(run, "train", [_row(tokenizer, *pair, pairs=pairs) for pair in sums[:train]]),
        _shard(run, "validation", [_row(tokenizer, *pair, pairs=pairs) for pair in sums[train:]]),
    )
    questions = [
        {"messages": [{"role": "user", "content": question}], "answer": answer} for question, answer in sums[train:]
    ]
    (folder / "held-out.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    prepared = Prepared(
        job_uid=UID,
        config_hash="",
        dataset=_summary(shards, train=train, validation=validation, pairs=pairs),
        estimate=Estimate(per_gpu_bytes=1),
        resolved=resolved,
        pad_token_id=PAD,
        shards=shards,
        held_out=f"{paths.PREPARED_DIR}/held-out.jsonl",
        first_example="<user> 1 plus 2 [[3<eos>]] <script>alert(1)</script>",
        token_histogram={"0-15": train, "16-31": validation},
        label_histogram={"<12>": 3},
    )
    content = prepared.to_json().encode()
    (run / paths.PREPARED).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _sum(number: int) -> tuple[str, str]:
    dice = random.Random(number)  # noqa: S311
    terms = [str(dice.randrange(10)) for _ in range(dice.randrange(2, 12))]
    return " plus ".join(terms), str(sum(map(int, terms)))


def _row(tokenizer: Any, question: str, answer: str, *, pairs: bool) -> dict[str, list[int]]:
    prompt = tokenizer(f"user : {question} assistant :", add_special_tokens=False)["input_ids"]
    reply = [*tokenizer(answer, add_special_tokens=False)["input_ids"], EOS]
    row = {"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply}
    if not pairs:
        return row
    # Now and then a longer one: sides differ in length.
    wrong = [*tokenizer(f"{int(answer) + 1} {'plus ' * (int(answer) % 3)}", add_special_tokens=False)["input_ids"], EOS]
    return {**row, "rejected_ids": prompt + wrong, "rejected_labels": [-100] * len(prompt) + wrong}


def _shard(run: Path, split: Any, rows: list[dict[str, list[int]]]) -> Shard:
    path = f"{paths.PREPARED_DIR}/{split}-00000.parquet"
    int_lists = pa.list_(pa.int32())
    schema = pa.schema([(name, int_lists) for name in rows[0]])
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), run / path)
    content = (run / path).read_bytes()
    return Shard(
        split=split,
        path=path,
        rows=len(rows),
        tokens=sum(len(row["input_ids"]) for row in rows),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )


def _summary(shards: tuple[Shard, ...], *, train: int, validation: int, pairs: bool) -> DatasetSummary:
    return DatasetSummary(
        format=DatasetFormat.PREFERENCE if pairs else DatasetFormat.MESSAGES,
        examples=train + validation,
        train_examples=train,
        validation_examples=validation,
        train_tokens=shards[0].tokens,
        loss_tokens=shards[0].rows * 2,
        longest=40,
        truncated=0,
        dropped=0,
        duplicates=0,
        near_duplicates=2,
        warnings=("Only <29> examples: expect little.",),
    )
