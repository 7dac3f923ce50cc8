"""What is usual: learning rates, epochs and strengths by objective and method.

The rates of SFT are the guide's. DPO, which starts from a model that answers already, takes far lower ones (5e-7 for
all weights is the default of its authors' code); ORPO teaches the answers too, and takes about half of SFT's. KTO takes
somewhat more than DPO (1e-6 for all weights is TRL's default).
"""

from __future__ import annotations

from finetune_contract.spec import Lora, Method, Objective, Optimizer, Precision, TuningSpec

RATES: dict[Objective, dict[Method, float]] = {
    Objective.SFT: {Method.LORA: 2e-4, Method.QLORA: 2e-4, Method.FULL: 1e-5},
    Objective.DPO: {Method.LORA: 5e-6, Method.QLORA: 5e-6, Method.FULL: 5e-7},
    Objective.ORPO: {Method.LORA: 8e-5, Method.QLORA: 8e-5, Method.FULL: 8e-6},
    Objective.KTO: {Method.LORA: 1e-5, Method.QLORA: 1e-5, Method.FULL: 1e-6},
}
LION_SHARE = 0.2
"""Lion moves every parameter by the rate itself: its paper (section 5) takes a third to a tenth of AdamW's."""
EPOCHS = {Objective.SFT: 3, Objective.DPO: 1, Objective.ORPO: 3, Objective.KTO: 1}
BETA = 0.1


def usual_rate(spec: TuningSpec) -> tuple[float, str]:
    """Return the learning rate that is chosen where none is given, and why."""
    with_what = f"{spec.method}" + ("" if spec.objective is Objective.SFT else f" and {spec.objective}")
    rate = RATES[spec.objective][spec.method]
    if spec.hyperparameters.optimizer is Optimizer.LION_8BIT:
        return rate * LION_SHARE, f"a fifth of what is usual for {with_what} with AdamW"
    return rate, f"usual for {with_what}"


def takes_fast_path(spec: TuningSpec, precision: Precision, *, gpus: int) -> bool:
    """Whether the trainer computes steps on its fast path, as far as job and GPU, not its model, decide that.

    What the GPUs share decides as well (`sharing.keeps_fast_path`).
    """
    lora = spec.lora or Lora()
    plain = lora.dropout == 0 and not (lora.dora or lora.modules_to_save or spec.model.new_tokens)
    plain |= spec.method is Method.FULL
    return bool(gpus) and spec.objective is Objective.SFT and plain and precision is Precision.BFLOAT16


def sides(spec: TuningSpec) -> int:
    """Return the sequences an example that a step's pass has at one time: a preference has two.

    KTO's third, the mismatched one, passes on its own and without gradients, which never needs as much memory.
    """
    return 1 if spec.objective is Objective.SFT else 2
