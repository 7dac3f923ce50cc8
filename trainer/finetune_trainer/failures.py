"""What an exception that nobody expected means to the user: the row of the exit code table that it stands for.

Memory and disk run out inside libraries that wrap the cause in errors of their own, so the whole chain of causes is
looked at, and texts where types say nothing.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

from finetune_contract.exit_codes import BY_CODE, ExitCode
from finetune_trainer.errors import TrainerError

# safetensors (Rust) and torch's file writer say these where Python has an errno; the last two are torch.save, whose
# writer loses the errno.
_DISK_FULL_TEXTS = ("no space left on device", "os error 28", "disk quota exceeded", "iostream error", "unexpected pos")
_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)


_RANK_LOST_TEXTS = ("connection closed by peer", "connection reset by peer", "socket closed", "broken pipe")
_HUNG_TEXTS = ("timed out", "timeout")


def explain(error: BaseException) -> TrainerError:
    """Return the known failure that an exception stands for, INTERNAL_ERROR if it is none."""
    for cause in _chain(error):
        if isinstance(cause, TrainerError):
            return cause
        if _is_disk_full(cause):
            return TrainerError(
                ExitCode.DISK_FULL, "The disk of the pod is full: raise resources.ephemeralStorage or free the cache."
            )
        if _is_out_of_memory(cause):
            return TrainerError(ExitCode.OUT_OF_MEMORY, _out_of_memory_message(cause))
        if (code := _collective(cause)) is not None:
            return TrainerError(code, f"{BY_CODE[code].meaning} ({str(cause)[-200:]})")
    return TrainerError(ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}".strip())


def is_accelerator_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory ran out, which a smaller micro-batch may cure."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error).lower() for text in _DISK_FULL_TEXTS)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or is_accelerator_out_of_memory(error):
        return True
    return isinstance(error, RuntimeError | OSError) and any(t in str(error).lower() for t in _OUT_OF_MEMORY_TEXTS)


def _collective(error: BaseException) -> ExitCode | None:
    """Return what a collective's error means; torch raises a RuntimeError with the network's words."""
    text = str(error).lower()
    if not isinstance(error, RuntimeError) or not any(name in text for name in ("gloo", "nccl", "tcpstore")):
        return None
    if any(words in text for words in _RANK_LOST_TEXTS):
        return ExitCode.RANK_LOST
    return ExitCode.COLLECTIVE_TIMEOUT if any(words in text for words in _HUNG_TEXTS) else None


def _out_of_memory_message(error: BaseException) -> str:
    where = "GPU" if is_accelerator_out_of_memory(error) else "host"
    return (
        f"The {where}'s memory ran out even at this micro-batch: lower hyperparameters.maxSequenceLength or "
        "microBatchSize, set gradientCheckpointing, or use QLoRA."
        if where == "GPU"
        else "The pod's memory ran out: raise resources.memory."
    )
