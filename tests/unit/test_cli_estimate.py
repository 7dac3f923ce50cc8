"""`finetune estimate`: the table for a job and for a model, what fits, and where config.json is read from."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from finetune_operator.cli.__main__ import main
from tests.unit.rule_cases import REMOVED, job

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
PARTS = (
    "weights",
    "adapter",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "copies",
    "buffers",
    "runtime",
    "total",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def _rows(text: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_without_a_method_all_three_stand_side_by_side(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--model", str(model), "--gpu-memory", "24Gi"]) == 0
    out = capsys.readouterr().out
    assert "llama, 8.03 billion parameters; sequences of 2048 tokens, a GPU of 24.00 GiB" in out
    rows = _rows(out)
    assert rows["GiB"] == ["LoRA", "QLoRA", "Full"]
    assert rows["fits"] == ["yes", "yes", "NO"]
    columns = [[float(rows[part][column]) for part in PARTS] for column in range(3)]
    for *parts, total in columns:
        assert sum(parts) == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize(
    ("gpu", "gibibytes"),
    [({"gpuMemory": "16Gi"}, "16.00"), ({"gpuType": "Tesla-T4"}, "15.00")],
    ids=["memory", "type"],
)
def test_a_job_says_its_method_gpu_and_length(
    gpu: dict[str, str], gibibytes: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "spec.method": "QLoRA",
        "spec.model.uri": model.as_uri(),
        "spec.hyperparameters": {"maxSequenceLength": 1024, "microBatchSize": 2},
        "spec.resources": gpu,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job(changes)))
    assert main(["estimate", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"sequences of 1024 tokens, a GPU of {gibibytes} GiB" in out
    assert _rows(out)["GiB"] == ["QLoRA"]
    assert _rows(out)["micro-batch"] == ["2"]


def test_a_base_in_fp8_is_estimated_with_its_method_and_left_out_with_others(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights: dict[tuple[str, str], float] = {}
    for name, asked in (("FP8", {"type": "fp8"}), ("LoRA", REMOVED)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(job({"spec.model.uri": model.as_uri(), "spec.quantization": asked})))
        for method in ("LoRA", "QLoRA", "Full"):
            assert main(["estimate", str(path), "--method", method]) == 0
            weights[name, method] = float(_rows(capsys.readouterr().out)["weights"][0])

    assert weights["FP8", "LoRA"] < 0.7 * weights["LoRA", "LoRA"]
    assert all(weights["FP8", method] == weights["LoRA", method] for method in ("QLoRA", "Full"))


def test_nothing_fits_is_an_exit_code(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--model", str(model), "--method", "Full", "--gpu-memory", "8Gi"]) == 1
    assert _rows(capsys.readouterr().out)["fits"] == ["NO"]


def test_a_higher_rank_takes_more(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for rank in ("16", "64"):
        main(["estimate", "--model", str(model), "--method", "LoRA", "--rank", rank])
        sizes.append(float(_rows(capsys.readouterr().out)["optimizer"][0]))
    assert sizes[1] == pytest.approx(4 * sizes[0], rel=0.05)


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        refused = self.headers["Authorization"] != "Bearer right"
        found = self.path == "/org/name/resolve/v1/config.json"
        self.send_response(401 if refused else 200 if found else 404)
        self.end_headers()
        if not refused and found:
            self.wfile.write(json.dumps(CONFIG).encode())

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "right")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("hub")
def test_a_model_of_the_hub(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["estimate", "--model", "hf://org/name", "--revision", "v1"]) == 0
    assert "8.03 billion" in capsys.readouterr().out
    assert main(["estimate", "--model", "hf://org/name"]) == 2
    assert "there is no such file on the hub: check name and revision" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main(["estimate", "--model", "hf://org/name", "--revision", "v1"]) == 2
    assert "set HF_TOKEN, and accept the model's licence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "config.json: No such file or directory", id="missing"),
        pytest.param("{", "config.json: not JSON", id="not-json"),
        pytest.param("[]", "not a model's configuration", id="list"),
        pytest.param('{"model_type": "llama"}', "config.json has no hidden_size", id="no-shape"),
    ],
)
def test_a_model_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["estimate", "--model", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_bad_manifest_is_not_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job({"spec.lora.rank": 0})))
    assert main(["estimate", str(path)]) == 2
    assert "spec.lora.rank: must be at least 1 (is 0)" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["80 GB", "lots", "-1Gi"])
def test_an_amount_of_memory_that_is_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["estimate", "--model", "x", f"--gpu-memory={size}"])
    assert "is no amount of memory: write 80Gi" in capsys.readouterr().err
