"""What makes two runs the same: the hash of the effective spec without what may change while it runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune_operator.api.constants import PRIORITIES


def config_hash(spec: dict[str, Any]) -> str:
    """Return the sha256 (hex) of a FineTuneJob's spec without lifecycle, the priorities and output.ifExists.

    The spec is the effective one, the profile's defaults merged in. Key order does not matter.
    """
    fixed = {key: value for key, value in spec.items() if key not in ("lifecycle", "scheduling")}
    if "output" in fixed:
        fixed["output"] = {key: value for key, value in fixed["output"].items() if key != "ifExists"}
    scheduling = {key: value for key, value in spec.get("scheduling", {}).items() if key not in PRIORITIES}
    if scheduling:
        fixed["scheduling"] = scheduling
    text = json.dumps(fixed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
