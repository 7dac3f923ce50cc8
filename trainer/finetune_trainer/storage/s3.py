"""S3 and everything that speaks its protocol, through boto3.

boto3 has the whole chain of credentials, per-part checksums and the lowest memory of the parallel clients, and it
survived every dropped connection in the trial. Downloads are ours: ranges fetched in parallel and written in order,
so that a part file can be continued and the sha256 is there when the last byte is.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import StoredObject, field_of
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.failures import incomplete_credentials, s3_failures
from finetune_trainer.storage.ranges import Remote, download_ranges

PART = 16 << 20
TRANSFERS = 10
CONNECTIONS = 32
ATTEMPTS = 4
CONNECT_TIMEOUT = 4
READ_TIMEOUT = 30
DELETE_BATCH = 1000
SHA256 = "sha256"
"""Metadata key of uploads: whoever downloads the object again checks it."""


class S3Store:
    """Objects of any bucket, with the credentials of one use."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def read(self, uri: str) -> bytes:
        """Return an object. Raises NotFoundError."""
        with self._failures(uri):
            body: bytes = self._client.get_object(**_address(uri))["Body"].read()
            return body

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Write an object; with only_if_absent, raises AlreadyExistsError if there is one."""
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self._failures(uri):
            self._client.put_object(**_address(uri), Body=data, **condition)

    def list(self, uri: str) -> list[StoredObject]:
        """Return the object at the URI or those below it as a folder, sorted by path."""
        address = _address(uri)
        with self._failures(uri):
            if itself := self._exactly(address["Bucket"], address["Key"]):
                return [itself]
            prefix = f"{address['Key']}/" if address["Key"] else ""
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=address["Bucket"], Prefix=prefix)
            found = [_stored(item, prefix) for page in pages for item in page.get("Contents", ())]
        # Consoles leave empty objects named "folder/" behind.
        return sorted((item for item in found if not item.path.endswith("/") and item.path), key=lambda item: item.path)

    def download(self, uri: str, path: Path) -> str:
        """Fetch one object into a file, atomically and resuming a partial one; return its sha256."""
        address = _address(uri)
        with self._failures(uri):
            head = self._head(address)

            def fetch(first: int, last: int) -> bytes:
                span = f"bytes={first}-{last}"
                answer = self._client.get_object(**address, Range=span, IfMatch=head["ETag"])
                body: bytes = answer["Body"].read()
                return body

            remote = Remote(
                uri=uri,
                size=int(head["ContentLength"]),
                etag=_etag(head),
                sha256=head.get("Metadata", {}).get(SHA256),
                endpoint=self._endpoint,
                fetch=fetch,
            )
            return download_ranges(remote, path)

    def upload(self, path: Path, uri: str) -> str:
        """Store one file, in parallel parts that become visible together; return its sha256."""
        from boto3.s3.transfer import TransferConfig

        address = _address(uri)
        with self._failures(uri):
            digest = sha256_of(path)
            config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=TRANSFERS)
            with path.open("rb") as file:
                self._client.upload_fileobj(
                    file, address["Bucket"], address["Key"], ExtraArgs={"Metadata": {SHA256: digest}}, Config=config
                )
            return digest

    def delete(self, uri: str) -> None:
        """Delete the object at the URI or those below it; nothing there is no error."""
        address = _address(uri)
        base = address["Key"]
        keys = [f"{base}/{item.path}".strip("/") if item.path else base for item in self.list(uri)]
        with self._failures(uri):
            for start in range(0, len(keys), DELETE_BATCH):
                batch = [{"Key": key} for key in keys[start : start + DELETE_BATCH]]
                self._client.delete_objects(Bucket=address["Bucket"], Delete={"Objects": batch, "Quiet": True})

    def _failures(self, uri: str) -> Any:
        return s3_failures(uri, use=self._use, endpoint=self._endpoint)

    def _exactly(self, bucket: str, key: str) -> StoredObject | None:
        """Return the object of just that key. It sorts before all longer ones, so one entry of a listing tells."""
        if not key:
            return None
        page = self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        item = next(iter(page.get("Contents", ())), None)
        return _stored(item, key) if item and item["Key"] == key else None

    def _head(self, address: dict[str, str]) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        try:
            head: dict[str, Any] = self._client.head_object(**address)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "404":
                raise
            # An answer to HEAD has no body, so it cannot say whether the bucket or the object is missing.
            self._client.get_object(**address)
            raise NotFoundError(f"s3://{address['Bucket']}/{address['Key']}") from error
        return head

    @property
    def _endpoint(self) -> str:
        return self._setting("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3") or "Amazon S3"

    def _setting(self, name: str) -> str | None:
        """Return this use's variable, else the plain one."""
        return os.environ.get(f"{self._use}{name}") or os.environ.get(name) or None

    @cached_property
    def _client(self) -> Any:
        """The client. Explicit keys go together: a plain session token never joins a prefixed key."""
        import boto3
        from botocore.config import Config

        key, secret, token = (os.environ.get(f"{self._use}{name}") or None for name in _CREDENTIALS)
        if bool(key) != bool(secret):
            raise incomplete_credentials(self._use)
        session = boto3.session.Session(
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token if key else None,
            region_name=self._setting("AWS_REGION") or self._setting("AWS_DEFAULT_REGION"),
        )
        endpoint = self._setting("AWS_ENDPOINT_URL")
        config = Config(
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            max_pool_connections=CONNECTIONS,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            # Stores of one's own seldom have a DNS name for each bucket.
            s3={"addressing_style": "path" if endpoint else "auto"},
        )
        region = session.region_name or "us-east-1"
        try:
            return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
        except ValueError as error:
            raise TrainerError(
                ExitCode.CONFIG_INVALID,
                f"AWS_ENDPOINT_URL for {field_of(self._use)}.uri is {endpoint!r}: it must be a URL.",
            ) from error


_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def _address(uri: str) -> dict[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key.strip("/")}


def _stored(item: dict[str, Any], prefix: str) -> StoredObject:
    return StoredObject(path=item["Key"].removeprefix(prefix), size=int(item["Size"]), etag=_etag(item))


def _etag(item: dict[str, Any]) -> str:
    return str(item["ETag"]).strip('"')
