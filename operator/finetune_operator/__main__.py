"""`python -m finetune_operator`: run the operator with the settings of its environment."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version


def main() -> int:
    """Run the operator; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m finetune_operator", description=__doc__)
    parser.add_argument("--version", action="version", version=version("finetune-operator"))
    parser.parse_args()

    from finetune_operator.main import run
    from finetune_operator.observability.logs import configure
    from finetune_operator.settings import Settings

    try:
        settings = Settings.from_env()
    except ValueError as error:
        sys.stderr.write(f"finetune-operator: {error}\n")
        return 2
    configure(settings.log_format)
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
