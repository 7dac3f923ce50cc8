"""Whether a run takes the fast path, and why not where it does not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_contract.prepared import Resolved
from finetune_contract.sharing import Sharing, keeps_fast_path
from finetune_contract.spec import Method, Objective, Precision, TuningSpec
from finetune_trainer.data.dataset import Row
from finetune_trainer.failures import is_accelerator_out_of_memory
from finetune_trainer.logs import log
from finetune_trainer.model.build import device
from finetune_trainer.parallel.distributed import world

if TYPE_CHECKING:
    from finetune_trainer.fast.path import FastPath

_COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def fast_path(model: Any, spec: TuningSpec, resolved: Resolved, rows: Sequence[Row], *, work: Path) -> FastPath | None:
    """Return the fast path of a model, tried on its first examples; None if the plain one is taken."""
    if not _worth_it():
        return None
    found = _unasked(spec, resolved) or _try(model, resolved, rows, work=work)
    if isinstance(found, str):
        log.warning("plain path, as transformers and PEFT compute: %s", found)
        return None
    log.info("fast path: %s", found.summary)
    return found


def _worth_it() -> bool:
    """Whether steps become faster: on a CPU there is nothing to compile, and no kernel but torch's."""
    return device().type == "cuda"


def _unasked(spec: TuningSpec, resolved: Resolved) -> str | None:
    """Return why the job has none, whatever its model."""
    sharing = Sharing(resolved.zero_stage, resolved.offload, world().size)
    if not keeps_fast_path(spec.method, sharing):
        whole = "all weights are trained, and not held whole in the computing precision"
        return whole if spec.method is Method.FULL else "the GPUs share the model's state"
    if spec.objective is not Objective.SFT:
        return f"the objective is {spec.objective}"
    if device().type == "cuda" and resolved.precision is not Precision.BFLOAT16:  # what the kernels compute in
        return f"the precision is {resolved.precision}"
    return None


def _try(model: Any, resolved: Resolved, rows: Sequence[Row], *, work: Path) -> FastPath | str:
    """Return the path, or why the model has none; all ranks the same."""
    for variable, folder in _COMPILED.items():
        os.environ.setdefault(variable, str(work / "compiled" / folder))
    path, reason = None, None
    try:
        from finetune_trainer.fast.check import EXAMPLES, disagreement
        from finetune_trainer.fast.path import FastPath

        path = FastPath(model, compiled=device().type == "cuda")
        if device().type == "cuda":
            length = resolved.max_sequence_length
            path.prepare_attention(tokens=length * resolved.micro_batch_size, length=length)
        reason = disagreement(model, path, list(islice(rows, EXAMPLES)), precision=resolved.precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a kernel or a model that nobody has tried: the plain path is always right
        if is_accelerator_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
    if world().any(reason is not None) or path is None:
        return reason or "another process has found a reason"
    return path
