"""Objects of Google's and Azure's storage for `cli/storage.py`; their clients are imported when a URI asks for them."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, closing
from typing import IO, Any

from finetune_contract.run_config import Use

_AZURE = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    "AZURE_STORAGE_ENDPOINT": "endpoint",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
}
LIBRARIES = ("google", "obstore", "requests")
"""Top-level packages whose errors are about storage."""


def gcs_object(rest: str, use: Use) -> IO[bytes]:
    """Open bucket/path on Google Cloud Storage."""
    try:
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client
        from google.oauth2 import service_account
    except ImportError as error:
        raise _needed("gs", "google-cloud-storage") from error
    key = _variable(use, "GOOGLE_SERVICE_ACCOUNT_KEY")
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        credentials: Any = AnonymousCredentials()
    elif key:
        credentials = service_account.Credentials.from_service_account_info(json.loads(key))
    else:
        credentials, _ = google.auth.default()
    bucket, _, name = rest.partition("/")
    opened: IO[bytes] = Client(project="none", credentials=credentials).bucket(bucket).blob(name).open("rb")
    return opened


def azure_object(rest: str, use: Use) -> AbstractContextManager[Any]:
    """Open container/path on Azure Blob Storage."""
    try:
        import obstore
        from obstore.store import AzureStore
    except ImportError as error:
        raise _needed("az", "obstore") from error
    config = {name: value for variable, name in _AZURE.items() if (value := _variable(use, variable))}
    container, _, name = rest.partition("/")
    options = {"allow_http": config.get("endpoint", "").startswith("http://")}
    return closing(obstore.open_reader(AzureStore(container, config=config, client_options=options), name))


def _variable(use: Use, name: str) -> str | None:
    """Return the variable with the use's prefix, else the plain one, as in a pod."""
    return os.environ.get(f"{use}{name}") or os.environ.get(name)


def _needed(scheme: str, package: str) -> OSError:
    return OSError(f"{package} is needed for {scheme}://: pip install 'finetune-operator[trainer]'")
