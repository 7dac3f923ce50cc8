"""What went wrong in storage, in the user's words: the one place that maps errors to rows of the exit code table.

Messages name the URI, the endpoint and the Secret's use, never a credential: botocore's own texts are left out where
they could carry one.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import AlreadyExistsError, NotFoundError, TrainerError
from finetune_trainer.storage import field_of

_DENIED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AuthFailure",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "Unauthorized",
        "401",
        "403",
    }
)
_NO_BUCKET = frozenset(["NoSuchBucket", "InvalidBucketName"])
_NO_KEY = frozenset(["NoSuchKey", "NotFound", "404"])
_THERE_ALREADY = frozenset(["PreconditionFailed", "ConditionalRequestConflict", "412"])
_OTHER_REGION = frozenset(["PermanentRedirect", "AuthorizationHeaderMalformed", "301"])
_NO_CONTAINER = "ContainerNotFound"
_NO_CREDENTIALS = (
    "metadata",
    "credential",
    "Credential",
    "service account",
    "private key",
    "Account must be specified",
)
_REFUSALS = ("401", "403")
_KEYS = {
    "s3": "{use}AWS_ACCESS_KEY_ID, {use}AWS_SECRET_ACCESS_KEY",
    "gs": "{use}GOOGLE_SERVICE_ACCOUNT_KEY",
    "az": "{use}AZURE_STORAGE_ACCOUNT_NAME, {use}AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINTS = {"gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_ENDPOINT"}
_DISK_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])
_REFUSED = frozenset([errno.EACCES, errno.EPERM, errno.EROFS])


@contextmanager
def s3_failures(uri: str, *, use: Use, endpoint: str) -> Iterator[None]:
    """Turn what botocore raises inside the block into our errors."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        raise _from_code(code, uri, use=use, endpoint=endpoint) from error
    except BotoCoreError as error:
        raise _from_client(error, uri, use=use, endpoint=endpoint) from error
    except OSError as error:
        raise _from_system(error, uri, use=use) from error


@contextmanager
def azure_failures(uri: str, *, use: Use, endpoint: str, connecting: bool = False) -> Iterator[None]:
    """Turn what obstore raises inside the block into our errors; its own texts may hold signed URLs. Before anything
    is sent (`connecting`) it is the settings that are wrong.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError) as error:
        if connecting:
            raise _denied(uri, use=use, endpoint=endpoint, why="account or key cannot be used as they are") from error
        raise _from_obstore(error, uri, use=use, endpoint=endpoint) from error
    except OSError as error:
        raise _from_system(error, uri, use=use) from error


@contextmanager
def gcs_failures(uri: str, *, use: Use, endpoint: str) -> Iterator[None]:
    """Turn what Google's client raises inside the block into our errors."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests.exceptions import RequestException

    try:
        yield
    except GoogleAPICallError as error:
        raise _from_status(error.code, str(error), uri, use=use, endpoint=endpoint) from error
    except InvalidResponse as error:
        raise _from_status(error.response.status_code, error.response.text, uri, use=use, endpoint=endpoint) from error
    except GoogleAuthError as error:
        why = f"no credentials were given, or they cannot be used: {type(error).__name__}"
        raise _denied(uri, use=use, endpoint=endpoint, why=why) from error
    except (RequestException, RetryError, DataCorruption) as error:
        raise unreachable(uri, endpoint=endpoint, why=type(error).__name__) from error
    except OSError as error:
        raise _from_system(error, uri, use=use) from error


@contextmanager
def file_failures(uri: str, *, use: Use) -> Iterator[None]:
    """Turn what the file system raises inside the block into our errors."""
    try:
        yield
    except OSError as error:
        raise _from_system(error, uri, use=use) from error


def disk_full(where: str) -> TrainerError:
    """Return the error for a full disk."""
    return TrainerError(
        ExitCode.DISK_FULL,
        f"The disk is full while writing {where}: raise resources.ephemeralStorage or the claim's size.",
    )


def incomplete_credentials(use: Use) -> TrainerError:
    """Return the error for a key without its secret, or the other way round."""
    return TrainerError(
        ExitCode.STORAGE_ACCESS_DENIED,
        f"The Secret of {_secret(use)} has only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: give both.",
    )


def unreachable(uri: str, *, endpoint: str, why: str) -> TrainerError:
    """Return the error for storage that does not answer."""
    return TrainerError(
        ExitCode.STORAGE_UNAVAILABLE,
        f"Object storage at {endpoint} could not be used for {uri} after retries: {why}. "
        f"Check {_ENDPOINTS.get(uri.partition('://')[0], 'AWS_ENDPOINT_URL')} and the network.",
    )


def _from_code(code: str, uri: str, *, use: Use, endpoint: str) -> Exception:
    if code in _NO_KEY:
        return NotFoundError(uri)
    if code in _THERE_ALREADY:
        return AlreadyExistsError(uri)
    if code in _NO_BUCKET:
        return _no_bucket(uri, use=use, endpoint=endpoint)
    if code in _DENIED:
        return _denied(uri, use=use, endpoint=endpoint, why=code)
    if code in _OTHER_REGION:
        return TrainerError(
            ExitCode.CONFIG_INVALID,
            f"The bucket of {uri} lies in another region ({code}): set AWS_REGION in the Secret of {_secret(use)}.",
        )
    return unreachable(uri, endpoint=endpoint, why=f"it answered {code}")


def _from_client(error: Exception, uri: str, *, use: Use, endpoint: str) -> TrainerError:
    """Sort the errors that come up before an answer does: no credentials, a bad name, no connection."""
    kind = type(error).__name__
    if "Credential" in kind or "Token" in kind:
        why = "no complete credentials were given: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return _denied(uri, use=use, endpoint=endpoint, why=why)
    if kind == "ParamValidationError":
        return _no_bucket(uri, use=use, endpoint=endpoint)
    return unreachable(uri, endpoint=endpoint, why=kind)


def _from_status(status: int | None, text: str, uri: str, *, use: Use, endpoint: str) -> Exception:
    """Sort Google's answers: a missing bucket and a missing object have the same status."""
    match status:
        case 404 if "bucket does not exist" in text or "/o?" in text:  # a listing, which objects never fail
            return _no_bucket(uri, use=use, endpoint=endpoint)
        case 404:
            return NotFoundError(uri)
        case 412:
            return AlreadyExistsError(uri)
        case 401 | 403:
            return _denied(uri, use=use, endpoint=endpoint, why=f"it answered {status}")
        case _:
            return unreachable(uri, endpoint=endpoint, why=f"it answered {status}")


def _from_obstore(error: Exception, uri: str, *, use: Use, endpoint: str) -> Exception:
    kind, text = type(error).__name__, str(error)
    if _NO_CONTAINER in text:
        return _no_bucket(uri, use=use, endpoint=endpoint)
    if kind in ("NotFoundError", "FileNotFoundError"):
        return NotFoundError(uri)
    if kind in ("AlreadyExistsError", "PreconditionError"):
        return AlreadyExistsError(uri)
    status = re.search(r"status code: (\d{3})", text)
    if kind in ("PermissionDeniedError", "UnauthenticatedError", "PermissionError") or (
        status and status[1] in _REFUSALS
    ):
        return _denied(uri, use=use, endpoint=endpoint, why=status[1] if status else kind)
    if any(word in text for word in _NO_CREDENTIALS):
        return _denied(uri, use=use, endpoint=endpoint, why="no credentials were given, or they cannot be read")
    return unreachable(uri, endpoint=endpoint, why=f"it answered {status[1]}" if status else kind)


def _from_system(error: OSError, uri: str, *, use: Use) -> Exception:
    if error.errno in _DISK_FULL:
        return disk_full(uri)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(uri)
    if isinstance(error, FileExistsError):
        return AlreadyExistsError(uri)
    if error.errno in _REFUSED:
        hint = "check the owner of the files, or set podTemplate.securityContext.fsGroup"
        return TrainerError(ExitCode.STORAGE_ACCESS_DENIED, f"{field_of(use)}.uri {uri}: {error.strerror}; {hint}.")
    return TrainerError(ExitCode.STORAGE_UNAVAILABLE, f"{uri} could not be read or written: {error.strerror}.")


def _denied(uri: str, *, use: Use, endpoint: str, why: str) -> TrainerError:
    return TrainerError(
        ExitCode.STORAGE_ACCESS_DENIED,
        f"Object storage at {endpoint} refused access to {uri} ({why}): "
        f"check the Secret of {_secret(use)} (here {_KEYS[uri.partition('://')[0]].format(use=use)}).",
    )


def _no_bucket(uri: str, *, use: Use, endpoint: str) -> TrainerError:
    bucket = uri.partition("://")[2].split("/")[0]
    return TrainerError(
        ExitCode.BUCKET_NOT_FOUND,
        f"There is no {'container' if uri.startswith('az://') else 'bucket'} {bucket!r} at {endpoint}: "
        f"correct {field_of(use)}.uri ({uri}) or create it.",
    )


def _secret(use: Use) -> str:
    return f"{field_of(use)}.secretRef"
