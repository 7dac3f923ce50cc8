"""Reading what a URI names, for commands that run beside the trainer: file://, pvc://, s3://, gs://, az:// and hf://.

The trainer has the whole of it, with credentials a use, resume and checks; the two packages meet in the contract only.
Here a few small files are read, and outputs are hashed. boto3 is imported when an s3:// URI is met.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from finetune_contract.paths import ENV_CLAIMS
from finetune_contract.run_config import Use
from finetune_operator.cli.clouds import LIBRARIES, azure_object, gcs_object

_PIECE = 1 << 20
_TIMEOUT = 30
_HUB = "https://huggingface.co"


class StorageError(Exception):
    """A URI that cannot be read; the message names it and says why."""


def read(uri: str, *, use: Use = Use.OUTPUT, revision: str = "main") -> bytes:
    """Return the file that a URI names; revision is for hf://organisation/name/path."""
    return b"".join(pieces(uri, use=use, revision=revision))


def pieces(uri: str, *, use: Use = Use.OUTPUT, revision: str = "main") -> Iterator[bytes]:
    """Yield the file that a URI names, piece by piece. Raises StorageError."""
    with _failures(uri), _open(uri, use=use, revision=revision) as file:
        while piece := file.read(_PIECE):
            yield bytes(piece)


def names(uri: str, *, use: Use = Use.OUTPUT) -> list[str]:
    """Return the names of files and folders right below a folder's URI, sorted; none if it is not there."""
    scheme, _, rest = uri.rstrip("/").partition("://")
    with _failures(uri):
        if scheme == "s3":
            return sorted(_s3_names(rest, use))
        folder = _local_path(scheme, rest)
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def local_uri(text: str) -> str:
    """Return a URI as it is, and a path as file:///absolute/path: as it is written, since nothing here is %-encoded."""
    return text if "://" in text else f"file://{Path(text).absolute()}"


def _open(uri: str, *, use: Use, revision: str) -> AbstractContextManager[Any]:
    scheme, _, rest = uri.partition("://")
    match scheme:
        case "s3":
            return _s3_object(rest, use)
        case "gs":
            return gcs_object(rest, use)
        case "az":
            return azure_object(rest, use)
        case "hf":
            return _hub_file(rest, revision)
        case _:
            return _local_path(scheme, rest).open("rb")


def _local_path(scheme: str, rest: str) -> Path:
    if scheme == "file":
        return Path("/", *rest.split("/"))
    if scheme == "pvc" and os.environ.get(ENV_CLAIMS):
        return Path(os.environ[ENV_CLAIMS], *rest.split("/"))
    raise OSError(f"a {scheme}:// URI cannot be read here")


def _s3_object(rest: str, use: Use) -> IO[bytes]:
    bucket, _, key = rest.partition("/")
    body: IO[bytes] = _s3_client(use).get_object(Bucket=bucket, Key=key)["Body"]
    return body


def _s3_names(rest: str, use: Use) -> set[str]:
    bucket, _, prefix = rest.partition("/")
    pages = _s3_client(use).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/", Delimiter="/")
    found = set()
    for page in pages:
        keys = [item["Key"] for item in page.get("Contents", [])]
        folders = [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        found |= {key.rstrip("/").rsplit("/", 1)[-1] for key in keys + folders}
    return found


def _s3_client(use: Use) -> Any:
    try:
        import boto3
    except ImportError as error:
        raise OSError("boto3 is needed for s3://: pip install 'finetune-operator[trainer]'") from error
    # As in a pod: the variable with the use's prefix counts before the plain one, which boto3 reads itself.
    names = {
        "endpoint_url": "AWS_ENDPOINT_URL",
        "aws_access_key_id": "AWS_ACCESS_KEY_ID",
        "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "aws_session_token": "AWS_SESSION_TOKEN",
        "region_name": "AWS_REGION",
    }
    given = {name: os.environ.get(f"{use.value}{variable}") for name, variable in names.items()}
    given["region_name"] = given["region_name"] or os.environ.get("AWS_REGION")
    return boto3.client("s3", **{name: value for name, value in given.items() if value})


def _hub_file(rest: str, revision: str) -> IO[bytes]:
    organisation, name, path = rest.split("/", 2)
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(  # noqa: S310 - the hub's own address
        f"{hub}/{organisation}/{name}/resolve/{revision}/{path}", headers=headers
    )
    response: IO[bytes] = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    return response


@contextmanager
def _failures(uri: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()  # it is the response, still open
        raise StorageError(f"{uri}: {_HTTP.get(error.code, f'the hub answers {error.code} {error.reason}')}") from error
    except OSError as error:  # a URLError, too
        raise StorageError(f"{uri}: {error.strerror or getattr(error, 'reason', '') or error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("botocore", *LIBRARIES):
            raise
        raise StorageError(f"{uri}: {error}") from error


_HTTP = {
    401: "the hub refuses access: set HF_TOKEN, and accept the model's licence on its page",
    403: "the hub refuses access: set HF_TOKEN, and accept the model's licence on its page",
    404: "there is no such file on the hub: check name and revision",
}
