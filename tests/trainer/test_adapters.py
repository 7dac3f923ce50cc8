"""Adapters: each variant from training to weights, on layers as asked; and names and ranks that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import Lora, Method
from finetune_trainer.errors import TrainerError
from finetune_trainer.model import principal
from finetune_trainer.model.adapters import attach, check_adapters
from finetune_trainer.model.adapters_check import check_apart
from finetune_trainer.model.build import load_base
from finetune_trainer.training.optimizers import raise_second_rates
from tests.support.families import save_family
from tests.support.prepared import Case, tiny_model
from tests.support.training import THIRD_PARTY, Outcome, make_case, train

pytestmark = THIRD_PARTY

EXACT = 2e-5
"""float32, sums in another order."""


def logits(model: Any, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Return logits of a few tokens."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(20).unsqueeze(0) if tokens is None else tokens).logits
    return found


def base_of(case: Case) -> Any:
    """Return the base model as a user has it."""
    return AutoModelForCausalLM.from_pretrained(case.config.spec.model.uri.removeprefix("file://"), dtype=torch.float32)


def adapted(case: Case, outcome: Outcome) -> Any:
    """Return the base model with the exported adapter, as PEFT alone puts them together."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base_of(case), str(outcome.run / paths.ADAPTER))


def variant(folder: Path, lora: dict[str, Any], *, method: str = "LoRA", tied: bool = False, **resolved: Any) -> Case:
    """Prepare a run whose merged weights, on the model's own, can be compared to the last digit."""
    base = {"base": "original"} if method == "QLoRA" else {}
    output = {"uri": f"file://{folder}/out", "merged": {"dtype": "float32", **base}}
    model = tiny_model(folder / "model", tie_word_embeddings=tied)
    settings = {"learning_rate": 1e-2, "lora_alpha": lora.get("alpha", lora.get("rank", 16)), **resolved}
    return make_case(folder, method=method, model=model, spec={"output": output, "lora": lora}, **settings)


VARIANTS = [
    pytest.param({"rank": 4, "rslora": True}, {}, id="rslora"),
    pytest.param({"rank": 4, "dora": True}, {}, id="dora"),
    pytest.param({"rank": 4, "initialization": "gaussian"}, {}, id="gaussian"),
    pytest.param({"rank": 4, "initialization": "pissa"}, {}, id="pissa"),
    pytest.param({"rank": 4, "initialization": "pissa", "rslora": True, "alpha": 6}, {}, id="pissa-rslora"),
    pytest.param({"rank": 4, "initialization": "olora"}, {}, id="olora"),
    pytest.param({"rank": 4, "loraPlusRatio": 4}, {}, id="lora-plus"),
    pytest.param({"rank": 4, "modulesToSave": ["lm_head"]}, {}, id="head"),
    pytest.param({"rank": 4, "modulesToSave": ["embed_tokens", "lm_head"]}, {}, id="embeddings"),
    pytest.param({"rank": 4, "modulesToSave": ["embed_tokens"]}, {"tied": True}, id="embeddings-tied"),
    pytest.param({"rank": 4, "modulesToSave": ["lm_head"]}, {"tied": True}, id="head-tied"),
    pytest.param({"rank": 4, "modulesToSave": ["norm", "layers.0.mlp"]}, {}, id="norm-and-mlp"),
    pytest.param({"rank": 4, "dora": True}, {"method": "QLoRA"}, id="dora-qlora"),
    pytest.param({"rank": 4, "rslora": True, "modulesToSave": ["lm_head"]}, {"method": "QLoRA"}, id="head-qlora"),
]


@pytest.mark.parametrize(("lora", "changes"), VARIANTS)
def test_the_exported_adapter_on_the_users_base_is_the_merged_model(
    tmp_path: Path, lora: dict[str, Any], changes: dict[str, Any]
) -> None:
    case = variant(tmp_path, lora, **changes)

    outcome = train(case)

    merged = AutoModelForCausalLM.from_pretrained(outcome.run / paths.MERGED, dtype=torch.float32)
    tuned = adapted(case, outcome)
    assert (logits(merged) - logits(tuned)).abs().max() < EXACT
    assert (logits(tuned) - logits(base_of(case))).abs().max() > 0.05  # it has learnt something
    assert outcome.evaluation["tuned"]["loss"] < outcome.evaluation["base"]["loss"]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"targetModules": ["query"]},
            "lora.targetModules: the model has no layer query; its linear layers are down_proj",
        ),
        ({"targetModules": ["all-linear", "q_porj"]}, "the model has no layer q_porj"),
        ({"targetModules": ["embed_tokens"]}, "embed_tokens is no linear layer: name it in lora.modulesToSave"),
        ({"targetModules": ["lm_head"]}, "lm_head is the output head: name it in lora.modulesToSave"),
        ({"excludeModules": ["wq"]}, "lora.excludeModules: the model has no module wq"),
        ({"targetModules": ["q_proj"], "excludeModules": ["q_proj"]}, "no layer is left for an adapter"),
        ({"modulesToSave": ["head"]}, "lora.modulesToSave: the model has no module head"),
        ({"modulesToSave": ["act_fn"]}, "act_fn has no weights"),
        ({"rank": 17}, r"lora.rank: 17 is above the size of model.layers.0.self_attn.k_proj \(32 inputs, 16 outputs\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_names_and_ranks_that_cannot_work_are_refused_before_weights_are_there(
    lora: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path)

    with pytest.raises(TrainerError, match=message) as failure:
        check_adapters(folder, Lora.model_validate(lora), quantised=False)
    assert failure.value.code is ExitCode.CONFIG_INVALID


def test_a_quantised_module_cannot_be_trained_whole(tmp_path: Path) -> None:
    lora = Lora(modules_to_save=("down_proj",))

    with pytest.raises(TrainerError, match="down_proj is quantised by QLoRA"):
        check_adapters(tiny_model(tmp_path), lora, quantised=True)
    check_adapters(tmp_path, lora, quantised=False)


def test_prepare_checks_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Prepare has no torch: what is wrong comes from there with its code and sentence."""
    folder = tiny_model(tmp_path)

    with pytest.raises(TrainerError, match="the model has no layer query") as failure:
        check_apart(folder, Lora(target_modules=("query",)), Method.LORA)
    assert failure.value.code is ExitCode.CONFIG_INVALID
    check_apart(folder, Lora(target_modules=("q_proj",)), Method.QLORA)


def test_experts_are_no_layers_for_adapters(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="gate_up_proj is a tensor of all experts at once"):
        check_adapters(save_family("mixtral", tmp_path), Lora(target_modules=("gate_up_proj",)), quantised=False)


def test_a_rank_that_one_layer_cannot_have_works_without_that_layer(tmp_path: Path) -> None:
    check_adapters(tiny_model(tmp_path), Lora(rank=17, exclude_modules=("k_proj", "v_proj")), quantised=False)


def test_layers_are_chosen_by_name(tmp_path: Path) -> None:
    model = load_base(tiny_model(tmp_path), dtype=torch.float32)

    tuned = attach(model, Lora(exclude_modules=("mlp", "layers.0.self_attn.o_proj")), alpha=1, seed=0)

    trained = {name.split(".lora_")[0] for name, one in tuned.named_parameters() if one.requires_grad}
    attention = {f"{number}.self_attn.{which}_proj" for number in range(2) for which in "qkvo"}
    assert {name.split(".layers.")[1] for name in trained} == attention - {"0.self_attn.o_proj"}


def test_the_model_card_tells_how(tmp_path: Path) -> None:
    spec = {"rank": 4, "dora": True, "rslora": True, "loraPlusRatio": 8, "modulesToSave": ["lm_head"]}
    case = variant(tmp_path, spec, total_steps=1)

    card = (train(case).run / paths.MODEL_CARD).read_text()

    assert "| LoRA | alpha 4, rank 4, rsLoRA, DoRA, rate of B x 8, lm_head trained whole |" in card


@pytest.mark.parametrize("initialization", ["pissa", "olora"])
def test_the_start_takes_nothing_from_the_model(tmp_path: Path, initialization: str) -> None:
    """The weights are taken apart: until something is trained, their sum says what the base says."""
    lora = {"rank": 4, "initialization": initialization}
    apart, plain = (train(variant(tmp_path / name, one, total_steps=1)) for name, one in (("a", lora), ("b", {})))

    assert apart.evaluation["base"]["loss"] == pytest.approx(plain.evaluation["base"]["loss"], abs=1e-5)


def test_pissa_starts_as_the_principal_part(tmp_path: Path) -> None:
    """And so learns another way: with the default start, the first step's update comes from B alone."""
    model = load_base(tiny_model(tmp_path), dtype=torch.float32)
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()

    layer = attach(model, Lora(rank=4, initialization="pissa"), alpha=8, seed=0).base_model.model.model.layers[0]

    product = layer.self_attn.q_proj.lora_B.default.weight @ layer.self_attn.q_proj.lora_A.default.weight
    best = torch.linalg.svdvals(weight)[4:].norm()
    assert (weight - 2 * product).norm() < 1.01 * best
    assert (layer.self_attn.q_proj.base_layer.weight + 2 * product - weight).abs().max() < 1e-6


def test_a_start_computed_otherwise_elsewhere_is_adopted(tmp_path: Path) -> None:
    """Another machine's decomposition has other signs: the checkpoint's adapters go with the checkpoint's start."""
    lora, folder = Lora(rank=4, initialization="pissa", rslora=True), tiny_model(tmp_path / "model")
    here, there = (attach(load_base(folder, dtype=torch.float32), lora, alpha=8, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            if "lora_" in name:
                parameter.mul_(-1.5)  # as if trained, and another start
                there.start[name] *= -1
    principal.save_start(there, tmp_path)
    here.load_state_dict({k: v for k, v in there.state_dict().items() if "lora_" in k}, strict=False)

    principal.adopt_start(here, tmp_path)

    assert (logits(here) - logits(there)).abs().max() < 1e-4


def test_lora_plus_raises_the_rate_of_the_second_matrices_alone(tmp_path: Path) -> None:
    model = attach(
        load_base(tiny_model(tmp_path), dtype=torch.float32), Lora(modules_to_save=("norm",)), alpha=1, seed=0
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)

    raise_second_rates(optimizer, model, ratio=16)

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(one)]: group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {1.6}
    assert {rate for name, rate in rates.items() if "lora_B" not in name} == {0.1}
    assert len(rates) == sum(parameter.requires_grad for parameter in model.parameters())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5}


def test_lora_plus_is_what_a_run_trains_with(tmp_path: Path) -> None:
    plain, raised = (
        train(variant(tmp_path / str(ratio), {"rank": 4, "loraPlusRatio": ratio}, total_steps=3)) for ratio in (1, 8)
    )

    assert raised.losses[1] == plain.losses[1]
    assert raised.losses[3] < plain.losses[3]
