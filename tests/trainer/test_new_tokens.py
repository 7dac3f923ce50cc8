"""model.newTokens from the data to the outputs: one token each, embedded, trained, saved, and there for its user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import JobIdentity, RunConfig
from finetune_contract.spec import Lora, TuningSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.model.adapters import attach
from finetune_trainer.model.build import load_base
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.model.vocabulary import add_tokens, grow_embeddings
from finetune_trainer.stage import run_stage
from tests.support.datasets import write_lines
from tests.support.families import save_family
from tests.support.prepared import make_environment, tiny_model
from tests.support.training import THIRD_PARTY, forget_preemption

pytestmark = THIRD_PARTY

NEW = ["<call>", "</call>"]
SIZE = 127
"""Words that the tiny model has."""


@pytest.fixture(autouse=True)
def _no_signal_before() -> Iterator[None]:
    forget_preemption()
    yield
    forget_preemption()


def run(folder: Path, *, method: str, tied: bool, lora: dict[str, Any] | None = None) -> Path:
    """Prepare and train with new tokens in every answer; return the run's folder."""
    torch.set_num_threads(1)
    model = tiny_model(folder / "model", tie_word_embeddings=tied)
    answers = [{"prompt": f"{n} plus {n % 7}", "completion": f" <call> {n + n % 7} </call>"} for n in range(40)]
    spec: dict[str, Any] = {
        "method": method,
        "model": {"uri": f"file://{model}", "newTokens": NEW},
        "dataset": {"uri": f"file://{write_lines(folder / 'data.jsonl', answers)}"},
        "output": {
            "uri": f"file://{folder}/out",
            "merged": {"dtype": "float32", **({"base": "original"} if method == "QLoRA" else {})},
        },
        "hyperparameters": {"maxSteps": 6, "batchSize": 8, "learningRate": 3e-2, "precision": "float32"},
        "evaluation": {"everySteps": 3},
        **({"lora": lora} if lora else {}),
    }
    env = make_environment(folder)
    job = JobIdentity(name="caller", namespace="default", uid="a-uid")
    config = RunConfig(job=job, spec=TuningSpec.model_validate(spec), config_hash="a-hash")
    env.config.write_text(config.to_json())
    assert [run_stage(stage, env) for stage in ("prepare", "train")] == [0, 0]
    return folder / "out" / "run-1"


@pytest.mark.parametrize(
    ("method", "tied", "lora"),
    [
        pytest.param("LoRA", True, {"rank": 4}, id="LoRA-tied"),
        pytest.param("LoRA", False, {"rank": 4, "initialization": "pissa"}, id="PiSSA"),
        pytest.param("LoRA", False, {"rank": 4, "modulesToSave": ["lm_head"]}, id="LoRA-head"),
        pytest.param("LoRA", True, {"rank": 4, "modulesToSave": ["embed_tokens"]}, id="LoRA-embeddings-tied"),
        pytest.param("QLoRA", False, {"rank": 4}, id="QLoRA"),
        pytest.param("Full", True, None, id="Full-tied"),
    ],
)
def test_new_tokens_are_learnt_and_come_with_the_outputs(
    tmp_path: Path, method: str, tied: bool, lora: dict[str, Any] | None
) -> None:
    out = run(tmp_path, method=method, tied=tied, lora=lora)

    merged = AutoModelForCausalLM.from_pretrained(out / paths.MERGED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / paths.MERGED)
    assert tokenizer("<call>", add_special_tokens=False)["input_ids"] == [SIZE]
    assert merged.config.vocab_size == len(tokenizer) == SIZE + len(NEW)
    rows = merged.get_output_embeddings().weight[SIZE:]
    assert (rows[0] - rows[1]).abs().max() > 1e-3  # both began as the same mean
    evaluation = json.loads((out / paths.EVALUATION).read_text())
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"] - 0.3
    if method != "Full":
        assert (logits(merged) - logits(as_peft_loads_it(out))).abs().max() < 1e-4


def as_peft_loads_it(out: Path) -> Any:
    """Return base and adapter as PEFT alone puts them together: it grows the vocabulary to the saved tokenizer's."""
    from peft import AutoPeftModelForCausalLM

    settings = json.loads((out / paths.ADAPTER / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = settings["base_model_name_or_path"].removeprefix("file://")
    settings["revision"] = None
    (out / paths.ADAPTER / "adapter_config.json").write_text(json.dumps(settings))
    return AutoPeftModelForCausalLM.from_pretrained(out / paths.ADAPTER, dtype=torch.float32)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(100, SIZE + len(NEW)).unsqueeze(0)).logits
    return found


def test_new_rows_start_as_the_mean_also_in_spare_rows(tmp_path: Path) -> None:
    model = load_base(tiny_model(tmp_path), dtype=torch.float32)
    mean = model.get_output_embeddings().weight[:120].mean(0)

    grow_embeddings(model, [120, 121])  # rows that the vocabulary has and the tokenizer does not use

    assert model.get_input_embeddings().weight.shape[0] == SIZE
    assert torch.allclose(model.get_output_embeddings().weight[121], mean, atol=1e-6)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("plus", "the tokenizer has 'plus' already"),
        (" ", "a token of blanks"),
        ("<a>", "the tokenizer has '<a>' already"),
    ],
)
def test_tokens_that_cannot_be_added_are_named(tmp_path: Path, token: str, message: str) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path))

    with pytest.raises(TrainerError, match=message) as failure:
        add_tokens(tokenizer, ["<a>", token])
    assert failure.value.code is ExitCode.CONFIG_INVALID


def test_a_head_with_a_bias_is_to_be_trained_whole(tmp_path: Path) -> None:
    model = load_base(save_family("phi", tmp_path), dtype=torch.float32)
    grow_embeddings(model, [SIZE])

    with pytest.raises(TrainerError, match=r"name lm_head in lora\.modulesToSave"):
        attach(model, Lora(rank=4), alpha=4, seed=0, new_tokens=[SIZE])
    attach(model, Lora(rank=4, modules_to_save=("lm_head",)), alpha=4, seed=0, new_tokens=[SIZE])
