"""What a run does not use is not loaded: seconds of every start of a train stage."""

import sys
from typing import Any

import pytest

from finetune_trainer.unused import hide, unused
from tests.support.prepared import make_config


@pytest.mark.parametrize(
    ("method", "spec", "left_out"),
    [
        ("LoRA", {}, {"bitsandbytes", "wandb"}),
        ("Full", {"hyperparameters": {"optimizer": "adafactor"}}, {"bitsandbytes", "wandb"}),
        ("Full", {"hyperparameters": {"optimizer": "pagedAdamw32bit"}}, {"wandb"}),
        ("QLoRA", {}, {"wandb"}),
        ("LoRA", {"tracking": {"wandb": {"project": "p", "mode": "offline"}}}, {"bitsandbytes"}),
    ],
    ids=["LoRA", "torch's optimizer", "bitsandbytes' optimizer", "QLoRA", "tracked"],
)
def test_only_what_the_configuration_uses_is_loaded(method: str, spec: dict[str, Any], left_out: set[str]) -> None:
    config = make_config(output_uri="file:///out", model_uri="file:///model", method=method, **spec)
    assert set(unused(config)) == left_out


def test_what_is_hidden_is_not_installed_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    hide("antigravity")
    with pytest.raises(ModuleNotFoundError):
        import antigravity  # noqa: F401
    del sys.modules["antigravity"]


def test_what_is_loaded_already_stays() -> None:
    hide("sys")
    assert sys.modules["sys"] is sys
