"""Data sets of the hub: which files of a repository hf://datasets/organisation/name[/path or pattern] stands for.

Without a path it is those of one split, which the hub's data sets carry in the names of files or folders (the rules
of the `datasets` library): a repository's test split must not slip into the training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.patterns import has_wildcard, matches
from finetune_trainer.data.read import DataFile, is_data
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.hub import find_dataset

PREFIX = "hf://datasets/"
# The words that the `datasets` library knows the splits by.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def hub_files(uri: str, folder: Path, *, revision: str | None, splits: Sequence[str], field: str) -> list[DataFile]:
    """Fetch the files that a URI stands for; without a path, those of the first of the splits that has any.

    Raises DATASET_NOT_FOUND and CONFIG_INVALID, naming the field of `dataset`, and what `find_dataset` raises.
    """
    organisation, name, path = (*uri.removeprefix(PREFIX).strip("/").split("/", 2), "", "")[:3]
    found = find_dataset(f"{organisation}/{name}", revision)
    chosen = _chosen([file.path for file in found.files], path, splits)
    if not chosen:
        raise TrainerError(
            ExitCode.DATASET_NOT_FOUND, f"dataset.{field} {uri}: {_none([f.path for f in found.files])}."
        )
    folders = sorted({str(PurePosixPath(one).parent) for one in chosen})
    if len(folders) > 1 and not has_wildcard(path):
        raise TrainerError(
            ExitCode.CONFIG_INVALID,
            f"dataset.{field} {uri} has data in several folders ({', '.join(folders[:5])}), which may be different "
            f"subsets: name one ({PREFIX}{organisation}/{name}/{folders[0]}) or a pattern.",
        )
    found.download(chosen, folder)
    return [DataFile(folder / one, one, sha256_of(folder / one), found.commit) for one in chosen]


def _chosen(names: Sequence[str], path: str, splits: Sequence[str]) -> list[str]:
    ordered = sorted(names)
    if has_wildcard(path):
        return [name for name in ordered if matches(path, name)]
    if path in ordered:
        return [path]
    data = [name for name in ordered if is_data(name) and (not path or name.startswith(f"{path.rstrip('/')}/"))]
    for split in splits:
        if of_split := [name for name in data if _is_of(name, _WORDS.get(split, (split,)))]:
            return of_split
    # Nothing is named so: all that belongs to no other split, unless one was asked for.
    others = [word for words in _WORDS.values() for word in words]
    return [name for name in data if not _is_of(name, others)] if "train" in splits else []


def _is_of(name: str, words: Sequence[str]) -> bool:
    either = "|".join(map(re.escape, words))
    return re.search(rf"(?:^|[^a-zA-Z0-9])(?:{either})(?:[^a-zA-Z0-9]|$)", name) is not None


def _none(names: Sequence[str]) -> str:
    there = ", ".join(sorted(names)[:5]) or "nothing"
    return f"none of the repository's files is the data meant (there are: {there}); name a file, a folder or a pattern"
