"""The licence on a model card is what the base's own card says, and nothing that it does not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.outputs.card import licence_of


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: llama3.1\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "llama3.1", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [apache-2.0]\n---\n", {}),
        ("---\nlicense: {\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: !!bool perhaps\n---\n", {"license": "perhaps"}),
        ("---\n" + "[" * 5000 + "\n---\n", {}),
        ("---", {}),
        ("# No front matter\n", {}),
        (None, {}),
    ],
    ids=["one", "a named one", "a list", "broken", "no mapping", "a tag", "too deep", "cut off", "none", "no card"],
)
def test_the_licence_of_the_base(tmp_path: Path, card: str | None, said: dict[str, str]) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)

    assert licence_of(tmp_path) == said
