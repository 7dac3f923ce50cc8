"""A rank whose thread waits where Python cannot leave is ended by its watchdog, with the code that says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from finetune_contract.exit_codes import ExitCode

SCRIPT = """
import time
from finetune_trainer.parallel.watchdog import WATCHDOG
WATCHDOG.start(limit=0.5)
for _ in range(4):
    time.sleep(0.25)
    {sign}
"""


@pytest.mark.parametrize(
    ("sign", "code"),
    [
        pytest.param("pass", ExitCode.COLLECTIVE_TIMEOUT, id="no sign of life"),
        pytest.param("WATCHDOG.stop()", 0, id="no longer watched"),
    ],
)
def test_a_process_ends_when_it_shows_no_sign_of_life(sign: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(sign=sign)], check=False)

    assert done.returncode == code
