"""GGUF files: what llama.cpp itself computes from them is what transformers computes from the merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_contract.exit_codes import ExitCode
from finetune_contract.output_spec import GgufType
from finetune_trainer.errors import TrainerError
from finetune_trainer.outputs import gguf_files
from finetune_trainer.outputs.gguf_files import CONVERTER, TOLERANCE, write_gguf
from tests.support.gguf_models import FAMILIES, tiny_model_of

TOKENS = [5, 400, 7, 9000, 12, 333, 41, 2048]
"""A prompt in tokens: the tokenizers of both sides play no part in what is compared."""


def written(folder: Path, into: Path, *types: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kinds = [GgufType(kind) for kind in types]
    return write_gguf(folder, into, types=kinds, name="adder", tokenizer=tokenizer, stop_ids=[2])


def log_probabilities(model: Any) -> torch.Tensor:
    """Return the model's own, of the token after the prompt."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([TOKENS])).logits
    return logits[0, -1].float().log_softmax(-1)


def llama_cpp(path: Path, *, top: int = 20) -> dict[int, float]:
    """Return llama.cpp's likeliest tokens after the prompt, with their log-probabilities."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.warmup, parameters.verbosity = 64, False, -1
    asked = {"prompt": TOKENS, "max_tokens": 1, "temperature": 0, "logprobs": top}
    answers: list[Any] = []
    xllamacpp.Server(parameters).handle_completions(asked, answers.append)
    first = answers[0]["choices"][0]["logprobs"]["content"][0]
    return {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_says_what_the_merged_weights_say(family: str, tmp_path: Path) -> None:
    merged = tiny_model_of(family, tmp_path / "merged", dtype="bfloat16")
    assert written(merged, tmp_path / "gguf", "f16") == []

    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    found = llama_cpp(tmp_path / "gguf/model-f16.gguf")
    assert max(found, key=lambda token: found[token]) == expected.argmax()
    assert max(abs(expected[token].item() - value) for token, value in found.items()) < 0.02


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_of("llama", tmp_path_factory.mktemp("llama"), dtype="float16")


def test_f16_holds_the_merged_weights_exactly(llama: Path, tmp_path: Path) -> None:
    written(llama, tmp_path / "gguf", "f16")
    ours = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).state_dict()
    file = {"gguf_file": "model-f16.gguf", "dtype": torch.float32}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", **file).state_dict()

    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fewer_bits_stay_near_the_merged_weights(llama: Path, tmp_path: Path) -> None:
    bounds = {"q8_0": 1e-3, "q4_0": 2e-1}
    warnings = written(llama, tmp_path / "gguf", *bounds)

    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32))
    for kind, bound in bounds.items():
        file = {"gguf_file": f"model-{kind}.gguf", "dtype": torch.float32}
        found = log_probabilities(AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", **file))
        divergence = (expected.exp() * (expected - found)).sum().item()
        assert divergence < bound, kind
        assert llama_cpp(tmp_path / f"gguf/model-{kind}.gguf", top=1)
    assert warnings == []
    assert (tmp_path / "gguf/Modelfile").read_text().startswith("FROM ./model-q8_0.gguf\n")


def test_a_file_that_is_not_the_merged_model_is_not_kept(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, GgufType.Q4_0, 1e-9)
    (warning,) = written(llama, tmp_path / "gguf", "q4_0")

    assert "not the merged ones" in warning
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["WhisperForCausalLM"]}, "no converter for the architecture WhisperForCausalLM"),
        ({"architectures": ["BambaForCausalLM"]}, "converter refused the model"),
    ],
    ids=["unknown", "not such a model"],
)
def test_what_cannot_be_converted_is_a_warning(llama: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    for path in llama.iterdir():
        (merged / path.name).symlink_to(path)
    (merged / "config.json").unlink()
    (merged / "config.json").write_text(json.dumps(json.loads((llama / "config.json").read_text()) | change))

    (warning,) = written(merged, tmp_path / "gguf", "f16")
    assert says in warning
    assert warning.startswith("output.gguf: nothing was written")


def test_a_tokenizer_that_llama_cpp_does_not_know_is_a_warning(tmp_path: Path) -> None:
    from tests.support.prepared import tiny_model

    (warning,) = written(tiny_model(tmp_path / "merged"), tmp_path / "gguf", "q8_0")
    assert "nothing was written" in warning


def converter_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script in the converter's place: a fake, for ends that the real one has only on a machine in trouble."""
    (folder / "converter.py").write_text(f"import os, sys\n{does}\n")
    monkeypatch.setattr(gguf_files, "CONVERTER", folder / "converter.py")


def test_a_full_disk_ends_the_run_by_its_name(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converter_that("sys.exit('OSError: [Errno 28] No space left on device')", tmp_path, monkeypatch)

    with pytest.raises(TrainerError) as caught:
        written(llama, tmp_path / "gguf", "f16")
    assert caught.value.code is ExitCode.DISK_FULL


def test_a_converter_that_is_killed_asks_for_memory(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter_that("os.kill(os.getpid(), 9)", tmp_path, monkeypatch)

    (warning,) = written(llama, tmp_path / "gguf", "f16")
    assert "resources.memory" in warning


def test_the_converter_is_llama_cpp_s_own() -> None:
    """Unchanged: dev/llama_cpp.py takes another version, it is never edited here."""
    from dev.llama_cpp import changed_files

    assert changed_files(CONVERTER.parent) == []
    assert gguf_files.CONVERTER.is_file()
