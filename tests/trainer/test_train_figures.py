"""What a run costs and how well it uses its GPU: tokens, model FLOPs, MFU, GPU time, and Prometheus' text."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune_contract import paths
from finetune_contract.progress import TrainerStatus, finite_metrics
from finetune_contract.shape import ModelShape
from finetune_contract.spec import Lora, Method, Precision
from finetune_trainer.reporting.figures import Efficiency, flops_per_token, peak_flops
from finetune_trainer.reporting.progress import Poster
from finetune_trainer.reporting.prometheus import MetricsServer, exposition
from finetune_trainer.training.callbacks import Report
from tests.support.training import THIRD_PARTY, make_case, stopped, train

pytestmark = THIRD_PARTY

LLAMA_8B = ModelShape.from_config_json(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)


@pytest.mark.parametrize(("length", "expected"), [(2048, 32.1e9), (4096, 34.0e9), (8192, 37.8e9)])
def test_the_flops_of_llama_8b_are_those_worked_out_by_hand(length: int, expected: float) -> None:
    found = flops_per_token(LLAMA_8B, method=Method.LORA, lora=Lora(), mean_length=length, loss_share=1.0)

    # By hand attention was counted with what flash attention recomputes, which MFU leaves out.
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("method", [Method.FULL, Method.LORA])
def test_the_flops_are_those_that_torch_counts(method: Method) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model: Any = LlamaForCausalLM(config)
    if method is Method.LORA:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokens = torch.randint(0, 200, (4, 16))

    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()

    shape = ModelShape.from_config_json(config.to_dict())
    found = flops_per_token(shape, method=method, lora=Lora(), mean_length=16, loss_share=1.0)
    # Torch counts eager attention over the whole square, and no gradient for the frozen first layer's input.
    assert found == pytest.approx(counter.get_total_flops() / tokens.numel(), rel=0.05)


@pytest.mark.parametrize(
    ("card", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 311.8),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", None),
        ("A card of next year", None),
    ],
)
def test_cards_are_known_by_their_names(card: str, teraflops: float | None) -> None:
    found = peak_flops(card, Precision.BFLOAT16)

    assert found == (None if teraflops is None else pytest.approx(teraflops * 1e12))
    assert peak_flops(card, Precision.FLOAT32) is None


def test_mfu_is_the_share_of_the_peak() -> None:
    # 12,473 tokens a second at 32.2 GFLOP each: NVIDIA's own figure for Llama 3 8B with LoRA on an H100 is 402 TFLOP/s.
    assert Efficiency(flops_per_token=32.2e9, peak_flops=989.4e12).mfu(12_473) == pytest.approx(402 / 989.4, rel=0.01)


def test_trained_tokens_go_on_over_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(make_case(tmp_path / "undisturbed", total_steps=7))
    case = make_case(tmp_path / "disturbed", total_steps=7)
    posts: list[TrainerStatus] = []
    monkeypatch.setattr(Poster, "post", lambda _, status: posts.append(status))

    stopped(case, after=4, monkeypatch=monkeypatch)
    resumed = train(case.attempt(2))

    assert resumed.result.usage is not None
    assert resumed.result.usage == undisturbed.result.usage
    assert finite_metrics(posts[-1])["trainedTokens"] == resumed.result.usage.trained_tokens
    # The speed of the second attempt is not that of all tokens.
    assert resumed.evaluation["training"]["tokensPerSecond"] < 1e6
    assert resumed.result.usage.gpu_seconds is None
    assert "Trained tokens" in (resumed.run / paths.REPORT).read_text()


def test_gpu_time_goes_on_over_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.train.gpus", lambda: 1)
    case = make_case(tmp_path, total_steps=7)

    stopped(case, after=4, monkeypatch=monkeypatch)
    newest = sorted((case.run / paths.CHECKPOINTS / "attempt-0001").iterdir())[-1]
    before = json.loads((newest / "usage.json").read_text())["gpuSeconds"]
    usage = train(case.attempt(2)).result.usage

    assert usage is not None
    assert usage.gpu_seconds is not None
    assert usage.gpu_seconds > before > 0


# Prometheus.

SAMPLE = re.compile(r'^finetune_[a-z_]+\{finetunejob="adder"\} -?[0-9.e+-]+$')


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[MetricsServer]:
    """The servers that runs open, each on a free port."""
    found: list[MetricsServer] = []
    monkeypatch.setenv(paths.ENV_METRICS_PORT, "0")
    begin = MetricsServer.__init__

    def remembered(self: MetricsServer, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        found.append(self)

    monkeypatch.setattr(MetricsServer, "__init__", remembered)
    return found


def scraped(server: MetricsServer, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def test_a_running_pod_is_scraped(
    tmp_path: Path, servers: list[MetricsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    report = Report._report_step

    def report_and_scrape(self: Report, state: Any, logs: dict[str, float]) -> None:
        report(self, state, logs)
        if state.global_step == 4:
            texts.append(scraped(servers[0]))

    monkeypatch.setattr(Report, "_report_step", report_and_scrape)

    outcome = train(make_case(tmp_path, total_steps=6))

    lines = [line for line in texts[0].splitlines() if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in lines)
    assert 'finetune_step{finetunejob="adder"} 4' in lines
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert float(values['finetune_loss{finetunejob="adder"}']) == pytest.approx(outcome.losses[4])
    with pytest.raises(urllib.error.URLError):
        scraped(servers[0])  # the run has ended, and its port is free


def test_what_is_not_a_number_is_left_out() -> None:
    text = exposition({"loss": float("nan"), "step": 3, "unknown": 1}, job="adder")

    assert "finetune_loss" not in text
    assert text == (
        '# HELP finetune_step Optimizer steps done.\n# TYPE finetune_step gauge\nfinetune_step{finetunejob="adder"} 3\n'
    )


def test_a_port_that_is_taken_is_no_reason_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("", 0)) as taken:
        server = MetricsServer(taken.getsockname()[1], dict, job="adder")

    assert server.port is None
    assert "metrics are not served" in caplog.text
    server.close()


def test_without_a_port_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MetricsServer(None, dict, job="adder").port is None
