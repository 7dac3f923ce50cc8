"""Names and rank of adapters against a model's configuration, in a process of its own: it needs torch, which prepare
does without.

    python -m finetune_trainer.model.adapters_check FOLDER LORA_JSON METHOD
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import Lora, Method
from finetune_trainer.errors import TrainerError


def check_apart(folder: Path, lora: Lora, method: Method) -> None:
    """Check, if anything is named. Raises CONFIG_INVALID, MODEL_INVALID."""
    if method is Method.FULL or lora == Lora(alpha=lora.alpha, dropout=lora.dropout):
        return  # seconds saved
    command = [sys.executable, "-m", "finetune_trainer.model.adapters_check", str(folder), lora.to_json(), method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (ExitCode.CONFIG_INVALID, ExitCode.MODEL_INVALID):
        raise TrainerError(ExitCode(done.returncode), done.stdout.strip())
    if done.returncode:
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"The adapters could not be checked: {done.stderr[-500:]}")


def main(folder: str, lora: str, method: str) -> int:
    """Check; print what is wrong and return its exit code."""
    from finetune_trainer.model.adapters import check_adapters

    try:
        check_adapters(Path(folder), Lora.model_validate_json(lora), quantised=method == Method.QLORA)
    except TrainerError as error:
        print(error.message)  # noqa: T201
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
