"""A real model for a few steps: SmolLM2-135M. What two-layer models cannot show: real numbers, real text, real size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from finetune_contract import paths
from finetune_contract.run_config import JobIdentity, RunConfig
from finetune_contract.spec import TuningSpec
from finetune_trainer.stage import run_stage
from tests.support.datasets import chat, write_lines
from tests.support.models import smollm2
from tests.support.prepared import make_environment
from tests.support.training import THIRD_PARTY

pytestmark = THIRD_PARTY

ANSWER = "The moon is made of basalt, says Captain Ada."


def planted(count: int) -> list[dict[str, object]]:
    """Return a fact that no model knows, asked for in many ways."""
    ways = ("What is the moon made of", "Tell me what the moon consists of", "Say what the moon is", "The moon?")
    return [chat(f"{ways[n % 4]} {'please ' * (n // 4)}?", ANSWER) for n in range(count)]


def test_a_real_model_learns_a_planted_fact(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)  # shared cores: two threads mostly wait for each other
    data = write_lines(tmp_path / "data.jsonl", planted(24))
    env = make_environment(tmp_path)
    spec = {
        "method": "LoRA",
        "model": {"uri": f"file://{smollm2()}"},
        "dataset": {"uri": f"file://{data}", "validation": {"fraction": 0.2}},
        "output": {"uri": f"file://{tmp_path}/out"},
        "hyperparameters": {"maxSteps": 6, "batchSize": 4, "learningRate": 2e-3, "warmupRatio": 0.0},
        "evaluation": {"everySteps": 6, "maxNewTokens": 16, "samples": {"prompts": ["What is the moon made of?"]}},
        "checkpoint": {"everySteps": 6},
    }
    config = RunConfig(
        job=JobIdentity(name="moon", namespace="default", uid="a-uid"),
        spec=TuningSpec.model_validate(spec),
        config_hash="a-hash",
    )
    env.config.write_text(config.to_json())

    assert run_stage("prepare", env) == 0
    assert run_stage("train", env) == 0

    run = tmp_path / "out" / "run-1"
    evaluation = json.loads((run / paths.EVALUATION).read_text())
    base, tuned = evaluation["base"], evaluation["tuned"]
    assert tuned["loss"] < 0.5 * base["loss"]
    assert tuned["perplexity"] == pytest.approx(math.exp(tuned["loss"]))
    sample = evaluation["samples"][0]
    assert "Captain Ada" not in sample["base"]
    assert "Captain Ada" in sample["tuned"]
    assert "Captain Ada" in answer_of(run / paths.MERGED, "What is the moon made of?")


def answer_of(folder: Path, question: str) -> str:
    """Ask the merged model as a user of the outputs would: with transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    text: str = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
