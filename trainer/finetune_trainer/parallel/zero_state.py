"""What ZeRO shares out, as a checkpoint: whole tensors by the parameters' names, whoever held which share.

DeepSpeed's own checkpoint is one pickle a process, and only as many processes can read it; its universal checkpoint
(Lian et al. 2024, arXiv:2406.18820) is made from that in a step of its own: for every parameter the weights in float32
and each moment. That is what is written here at once, as safetensors: any stage and any number of processes go on from
it, and reading it runs no code.

The processes of the first node share the writing; all read all, and each keeps its share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.parallel.distributed import FETCHING, world

PATTERN = "zero-*.safetensors"
FILE_BYTES = 1 << 30
"""A file is written when it holds as much: no process has to hold the whole state in memory."""
WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"
_ROOM = 0.7
"""Share of the free memory that gathered weights may take: keys, values and the allocator need some."""
# What stages 1 to 3 call their shares in float32; the middle one is stage 1 with bfloat16.
_SHARES = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")


def shares(engine: Any) -> list[torch.Tensor]:
    """Return what this process holds in float32 of the trained weights, flat."""
    found = next(name for name in _SHARES if hasattr(engine.optimizer, name))
    return list(getattr(engine.optimizer, found))


def save(engine: Any, folder: Path) -> None:
    """Write weights and moments of what is trained to a folder of the first node; all processes call it."""
    writers = int(os.environ.get("LOCAL_WORLD_SIZE") or world().size)
    writer = _Writer(folder, step=_step(engine)) if world().rank < writers else None
    _link(engine.optimizer)
    for place, (name, parameter) in enumerate(_trained(engine)):
        for kind in (WEIGHTS, *MOMENTS):
            whole = _whole(parameter, kind)
            if writer and place % writers == world().rank:
                writer.add(f"{kind}.{name}", whole)
    if writer:
        writer.flush()
    world().barrier(limit=FETCHING)


def load(engine: Any, folder: Path) -> None:
    """Go on from what `save` wrote, with any number of processes and any stage."""
    from safetensors import safe_open

    parameters = dict(_trained(engine))
    for path in sorted(folder.glob(PATTERN)):
        with safe_open(path, framework="pt") as file:
            _make_moments(engine, step=float(file.metadata()[_STEP]))
            for key in file.keys():  # noqa: SIM118 - not a dict
                kind, name = key.split(".", 1)
                _put(parameters[name], kind, file.get_tensor(key))


class _Writer:
    """Collects tensors and writes them in files of about a gigabyte."""

    def __init__(self, folder: Path, *, step: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._metadata = folder, {_STEP: str(step)}
        self._held: dict[str, torch.Tensor] = {}
        self._files = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._held[name] = tensor.cpu()
        if sum(held.nbytes for held in self._held.values()) >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        from safetensors.torch import save_file

        if self._held:
            path = self._folder / PATTERN.replace("*", f"{world().rank:05d}-{self._files:05d}")
            save_file(self._held, path, metadata=self._metadata)
            self._held, self._files = {}, self._files + 1


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, one) for name, one in engine.module.named_parameters() if one.requires_grad)


def _step(engine: Any) -> float:
    return float(engine.optimizer.optimizer.state[shares(engine)[0]][_STEP])


def _whole(parameter: Any, kind: str) -> torch.Tensor:
    """Return a parameter's weights or one of its moments; all processes call it at the same point."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found: torch.Tensor = (
        safe_get_full_fp32_param(parameter) if kind == WEIGHTS else safe_get_full_optimizer_state(parameter, kind)
    )
    return found


def _make_moments(engine: Any, *, step: float) -> None:
    """Have moments to fill: the optimizer makes its own at its first step."""
    wrapper = engine.optimizer
    fused = any(group.get("fused") for group in wrapper.optimizer.param_groups)
    for share in shares(engine):
        state = wrapper.optimizer.state[share]
        if not state:
            state[_STEP] = torch.tensor(step, dtype=torch.float32, device=share.device if fused else None)
            state |= {moment: torch.zeros_like(share) for moment in MOMENTS}
    _link(wrapper)


def _link(wrapper: Any) -> None:
    """Have the parameters of stages 1 and 2 know where their moments lie.

    DeepSpeed does so after the first step of the first group of parameters, when the others have none yet.
    """
    if hasattr(wrapper, "_hp_optimizer_states_linked"):
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()


def _put(parameter: Any, kind: str, value: torch.Tensor) -> None:
    """Set this process's share of a parameter's weights or of one of its moments."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    moment = None if kind == WEIGHTS else kind
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value, moment)
        if moment is None:
            parameter.data.copy_(value)
        return
    share = _share(value, parameter.ds_tensor.numel())
    if moment:
        safe_set_local_optimizer_state(parameter, share, moment)
    else:
        safe_set_local_fp32_param(parameter, share)
        with gathered([parameter], changed=True):
            if world().first:
                parameter.data.copy_(value)


def _share(value: torch.Tensor, size: int) -> torch.Tensor:
    """Return this process's part of a tensor that is cut evenly, the last part filled up."""
    flat = value.flatten()[world().rank * size :][:size]
    return torch.nn.functional.pad(flat, (0, size - len(flat)))


def gathered(parameters: list[Any], *, changed: bool = False) -> Any:
    """Have partitioned parameters whole inside; `changed`: what the first process makes of them holds for all."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None)


def fits_whole(model: Any) -> bool:
    """Whether this process has room for the partitioned weights beside what it holds; on a CPU it is not asked."""
    if not torch.cuda.is_available():
        return True
    needed: int = sum(one.ds_numel * one.element_size() for one in model.parameters() if hasattr(one, "ds_numel"))
    free: int = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return needed < _ROOM * free
