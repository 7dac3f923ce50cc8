"""Models and data sets of the Hugging Face hub, or of anything that speaks its API (HF_ENDPOINT).

The hub's own client downloads: it resumes, knows the hub's storage and honours proxies. What it does not do is compare
contents: every file is held against the sha256 or the git hash that the hub lists.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import field_of
from finetune_trainer.storage.digest import PIECE, sha256_of

DEFAULT_REVISION = "main"
DEFAULT_ENDPOINT = "https://huggingface.co"
ATTEMPTS = 3
TIMEOUT = 10
FILES_AT_ONCE = 4
_SERVER_ERROR = 500
_TOO_MANY = 429

_NOT_FOUND = {Use.MODEL: ExitCode.MODEL_NOT_FOUND, Use.DATASET: ExitCode.DATASET_NOT_FOUND}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, with the digest that the hub lists."""

    path: str
    size: int
    sha256: str | None
    """Of files in large file storage."""
    git_sha1: str | None
    """Of all others: git's own hash."""


@dataclass(frozen=True, slots=True)
class HubCommit:
    """One commit of a repository."""

    repository: str
    use: Use
    """MODEL or DATASET: the kind of repository, and whose token is used."""
    commit: str
    files: tuple[HubFile, ...]
    endpoint: str

    def download(self, names: Iterable[str], into: Path) -> None:
        """Fetch files into a folder, going on with those that a killed download left half done."""
        wanted = set(names)
        with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="hub") as pool:
            list(pool.map(lambda file: self._fetch(file, into), [file for file in self.files if file.path in wanted]))
        shutil.rmtree(into / ".cache", ignore_errors=True)

    def _fetch(self, file: HubFile, into: Path) -> None:
        from huggingface_hub import hf_hub_download

        path = into / file.path
        if path.is_file() and _is_sound(file, path):
            return

        def fetch() -> str:
            return hf_hub_download(
                self.repository,
                file.path,
                repo_type=field_of(self.use),
                revision=self.commit,
                local_dir=into,
                endpoint=self.endpoint,
                token=_token(self.use),
                etag_timeout=TIMEOUT,
            )

        with _hub_failures(self.repository, self.commit, use=self.use, endpoint=self.endpoint):
            patiently(fetch)
        if not _is_sound(file, path):
            path.unlink()
            why = f"{file.path} of {self.repository} arrived damaged (its hash differs)"
            raise _unavailable(self.endpoint, why, use=self.use)


def find_model(uri: str, revision: str | None) -> HubCommit:
    """Ask the hub for a model's commit and files. Raises MODEL_NOT_FOUND, HUB_ACCESS_DENIED, HUB_UNAVAILABLE."""
    return _find(uri.removeprefix("hf://").strip("/"), revision, Use.MODEL)


def find_dataset(repository: str, revision: str | None) -> HubCommit:
    """Ask the hub for a data set's commit and files. Raises DATASET_NOT_FOUND, HUB_ACCESS_DENIED, HUB_UNAVAILABLE."""
    return _find(repository, revision, Use.DATASET)


def _find(repository: str, revision: str | None, use: Use) -> HubCommit:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    wanted = revision or DEFAULT_REVISION
    api = HfApi(endpoint=endpoint, token=_token(use))
    with _hub_failures(repository, wanted, use=use, endpoint=endpoint):
        info: Any = patiently(
            lambda: api.repo_info(
                repository, repo_type=field_of(use), revision=wanted, files_metadata=True, timeout=TIMEOUT
            )
        )
    files = tuple(_file(sibling) for sibling in info.siblings or ())
    return HubCommit(repository=repository, use=use, commit=str(info.sha), files=files, endpoint=endpoint)


def _file(sibling: Any) -> HubFile:
    large = sibling.lfs
    return HubFile(
        path=sibling.rfilename,
        size=int(sibling.size or 0),
        sha256=large.sha256 if large else None,
        git_sha1=None if large else sibling.blob_id,
    )


def _token(use: Use) -> str | None:
    """Return the use's own token, else the plain one; None lets the client look where `hf auth login` left one."""
    return os.environ.get(f"{use}HF_TOKEN") or os.environ.get("HF_TOKEN") or None


def _is_sound(file: HubFile, path: Path) -> bool:
    if file.sha256:
        return sha256_of(path) == file.sha256
    return file.git_sha1 is None or _git_sha1(path) == file.git_sha1


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def patiently(ask: Callable[[], T]) -> T:
    """Ask up to ATTEMPTS times while the hub does not answer."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return ask()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(2**attempt)
    return ask()


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        status = _status(error)
        return status is None or status >= _SERVER_ERROR or status == _TOO_MANY
    return _is_connection(error) and not isinstance(error, OfflineModeIsEnabled)


@contextmanager
def _hub_failures(repository: str, revision: str, *, use: Use, endpoint: str) -> Iterator[None]:
    """Turn the client's errors into rows of the exit code table. Its texts never carry the token."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        why = "it is gated: accept its licence on the hub with the token's account"
        raise _denied(repository, endpoint, why, use=use) from error
    except RevisionNotFoundError as error:
        raise TrainerError(
            _NOT_FOUND[use],
            f"The {field_of(use)} {repository} has no revision {revision!r}: correct {field_of(use)}.revision.",
        ) from error
    except HFValidationError as error:
        form = "hf://organisation/name" if use is Use.MODEL else "hf://datasets/organisation/name"
        raise TrainerError(
            ExitCode.CONFIG_INVALID,
            f"{field_of(use)}.uri: {repository} is no name of a {field_of(use)}: write {form}.",
        ) from error
    except TrainerError:
        raise
    except Exception as error:
        if known := _sorted(error, repository, use=use, endpoint=endpoint):
            raise known from error
        raise


def _sorted(error: Exception, repository: str, *, use: Use, endpoint: str) -> TrainerError | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    status = _status(error)
    if status in (401, 403) and not _hides_absence(error, use):
        return _denied(repository, endpoint, f"it answered {status}", use=use)
    if status in (401, 404) or (
        isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
    ):
        word = field_of(use)
        hint = f"correct {word}.uri, or give a token that may read it (HF_TOKEN in the Secret of {word}.secretRef)"
        return TrainerError(_NOT_FOUND[use], f"There is no {word} {repository} at {endpoint}: {hint}.")
    if status is not None or _is_connection(error):
        return _unavailable(endpoint, f"it answered {status}" if status else type(error).__name__, use=use)
    return None


def _hides_absence(error: Exception, use: Use) -> bool:
    """Whether this is the hub's answer for what does not exist or is private: 401 to a caller without a token."""
    from huggingface_hub.errors import RepositoryNotFoundError

    return isinstance(error, RepositoryNotFoundError) and _token(use) is None


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if status is not None else None


def _is_connection(error: Exception) -> bool:
    """Whether no answer came; the client's own HTTP library is known by its module."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    connection = ConnectionError | TimeoutError | LocalEntryNotFoundError
    return isinstance(error, connection) or type(error).__module__.startswith(("httpx", "httpcore"))


def _denied(repository: str, endpoint: str, why: str, *, use: Use) -> TrainerError:
    return TrainerError(
        ExitCode.HUB_ACCESS_DENIED,
        f"The hub at {endpoint} refused access to {repository}: {why}; the token is HF_TOKEN in the Secret of "
        f"{field_of(use)}.secretRef (here {use}HF_TOKEN).",
    )


def _unavailable(endpoint: str, why: str, *, use: Use) -> TrainerError:
    return TrainerError(
        ExitCode.HUB_UNAVAILABLE,
        f"The hub at {endpoint} could not be used after {ATTEMPTS} attempts: {why}. Check the network and HF_ENDPOINT, "
        f"or put the {field_of(use)} into object storage ({field_of(use)}.uri s3://…).",
    )
