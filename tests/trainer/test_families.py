"""Every family of models goes the same way: loss, adapters, packing and merge, on small random models of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from finetune_contract import paths
from finetune_contract.prepared import Prepared
from finetune_trainer.data.dataset import collator
from finetune_trainer.model.build import load_base
from tests.support.families import FAMILIES, WINDOW, save_family
from tests.support.prepared import Case
from tests.support.training import THIRD_PARTY, Outcome, make_case, train

pytestmark = THIRD_PARTY

EXACT = 3e-5
"""float32, sums in another order; logits are of the size of 1."""
QUANTISED = ("mistral", "gemma3_text", "gpt2", "qwen3_moe")
WHOLE = ("gpt2", "gemma3_text", "phi", "mixtral")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: save_family(family, folder / family) for family in FAMILIES}


def run(folder: Path, model: Path, *, method: str = "LoRA", merged_into: str | None = None) -> tuple[Case, Outcome]:
    """Train three steps on all examples at once, so that losses can be compared."""
    into = {"base": merged_into} if merged_into else {}
    output = {"uri": f"file://{folder}/out", "merged": {"dtype": "float32", **into}}
    rate = 3e-3 if method == "Full" else 2e-2
    settings: dict[str, Any] = {"total_steps": 3, "eval_every_steps": 3, "learning_rate": rate, "batch_size": 29}
    case = make_case(folder, model=model, method=method, spec={"output": output}, micro_batch_size=29, **settings)
    return case, train(case)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_trained_and_merged(tmp_path: Path, models: dict[str, Path], family: str) -> None:
    case, outcome = run(tmp_path, models[family])

    assert outcome.losses[3] < outcome.losses[1]
    assert outcome.evaluation["base"]["loss"] == pytest.approx(plain_loss(case, models[family]), abs=EXACT)
    assert (logits(adapted(models[family], outcome)) - logits(merged(outcome))).abs().max() < EXACT
    assert (logits(adapted(models[family], outcome)) - logits(base(models[family]))).abs().max() > 100 * EXACT


@pytest.mark.parametrize("family", QUANTISED)
def test_adapters_are_trained_on_4_bits(tmp_path: Path, models: dict[str, Path], family: str) -> None:
    _, outcome = run(tmp_path, models[family], method="QLoRA", merged_into="original")

    assert outcome.losses[3] < outcome.losses[1]
    assert (logits(adapted(models[family], outcome)) - logits(merged(outcome))).abs().max() < EXACT


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_4_bit_base_is_merged_as_it_was_trained(tmp_path: Path, models: dict[str, Path], family: str) -> None:
    """GPT-2 holds its matrices the other way round than the 4-bit layers that stand in for them."""
    case, outcome = run(tmp_path, models[family], method="QLoRA", merged_into="dequantized")

    assert plain_loss(case, outcome.run / paths.MERGED) == pytest.approx(outcome.evaluation["tuned"]["loss"], abs=1e-3)


@pytest.mark.parametrize("family", WHOLE)
def test_all_weights_are_trained(tmp_path: Path, models: dict[str, Path], family: str) -> None:
    _, outcome = run(tmp_path, models[family], method="Full")

    assert outcome.losses[3] < outcome.losses[1]
    assert merged(outcome).config.to_diff_dict() == base(models[family]).config.to_diff_dict()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_examples_do_not_see_each_other(models: dict[str, Path], family: str, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(models[family], attn_implementation=attention).eval()
    examples = [list(range(number, number + length)) for number, length in ((10, 20), (50, 2 * WINDOW), (70, 7))]
    flat = collator(_only_padding(), flatten=True)([{"input_ids": ids, "labels": ids} for ids in examples])
    assert flat["input_ids"].shape == (1, 43)
    assert "attention_mask" not in flat

    with torch.no_grad():
        packed = model(input_ids=flat["input_ids"], position_ids=flat["position_ids"], use_cache=False).logits[0]
        alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in examples]

    assert (packed - torch.cat(alone)).abs().max() < EXACT


def _only_padding() -> Any:
    return Prepared.model_construct(pad_token_id=0)


def base(folder: Path) -> Any:
    """Return the model as it was."""
    return load_base(folder, dtype=torch.float32)


def adapted(folder: Path, outcome: Outcome) -> Any:
    """Return it with the exported adapter."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base(folder), str(outcome.run / paths.ADAPTER))


def merged(outcome: Outcome) -> Any:
    """Return the merged model."""
    return AutoModelForCausalLM.from_pretrained(outcome.run / paths.MERGED, dtype=torch.float32)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(5, 45).unsqueeze(0)).logits
    return found


def plain_loss(case: Case, folder: Path) -> float:
    """Return the held-out loss as transformers' own forward gives it: a bias or a cap of the head would show."""
    model, total, counted = base(folder).eval(), 0.0, 0
    for row in parquet.read_table(case.run / "prepared/validation-00000.parquet").to_pylist():
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            found = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(found, labels, ignore_index=-100, reduction="sum").item()
        counted += int(labels.ne(-100).sum())
    return total / counted
