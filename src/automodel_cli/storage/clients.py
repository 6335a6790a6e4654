"""obstore's client of a bucket: which endpoint and which credentials, by the provider's own variables and files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

from automodel_cli.errors import ConfigError
from automodel_cli.storage.problems import Failure, in_words

_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AZURE_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")


def open_client(scheme: str, place: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    """obstore's store of a bucket or container, and the host that it asks.

    Raises:
        ConfigError: an endpoint is no address, or credentials are not whole.
        Exception: what obstore raises where it does not take what the environment says.
    """
    make = {"s3": _s3, "gs": _google, "az": _azure}[scheme]
    return make(place, environment)


def s3_endpoint(environment: Mapping[str, str]) -> str:
    """Of S3, "" for Amazon's own.

    Raises:
        ConfigError: it is no address.
    """
    return _endpoint(environment, _S3_ENDPOINTS)


def _s3(place: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    endpoint = s3_endpoint(environment)
    settings: dict[str, Any] = {"endpoint": endpoint.rstrip("/")} if endpoint else {}
    settings |= _s3_credentials(place, environment)
    return S3Store(place, **_ways(endpoint), **settings), _host(endpoint) or "s3.amazonaws.com"


def _google(place: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    """A server for tests (``STORAGE_EMULATOR_HOST``, with or without ``http://``) wants no credentials."""
    emulator = environment.get("STORAGE_EMULATOR_HOST", "")
    settings: dict[str, Any] = {}
    if emulator:
        address = emulator if "://" in emulator else f"http://{emulator}"
        endpoint = _checked(address, "STORAGE_EMULATOR_HOST").rstrip("/")
        settings = {"base_url": endpoint, "bearer_token": "none"}
    else:
        endpoint = _endpoint(environment, ("GOOGLE_BASE_URL",))
    return GCSStore(place, **_ways(endpoint), **settings), _host(endpoint) or "storage.googleapis.com"


def _azure(place: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    endpoint = _endpoint(environment, _AZURE_ENDPOINTS)
    account = environment.get("AZURE_STORAGE_ACCOUNT_NAME", "ACCOUNT")
    return AzureStore(place, **_ways(endpoint)), _host(endpoint) or f"{account}.blob.core.windows.net"


def _ways(endpoint: str) -> dict[str, Any]:
    """How requests are sent and repeated."""
    options: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "5min"}
    if endpoint:
        options["allow_http"] = endpoint.startswith("http://")
    return {"client_options": options, "retry_config": {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}}


def _endpoint(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    name = next((name for name in names if environment.get(name)), None)
    return "" if name is None else _checked(environment[name], name)


def _checked(address: str, name: str) -> str:
    if re.fullmatch(r"https?://[^/\s]+(/\S*)?", address) is None:
        raise ConfigError(f"{name} in the environment is not the address of a server", "write http(s)://HOST[:PORT]")
    return address


def _host(endpoint: str) -> str:
    """For messages: without what else an address may hold."""
    return urlsplit(endpoint).netloc.rpartition("@")[2]


def _s3_credentials(place: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Where keys are not in the environment, boto3's chain: profiles, single sign-on, roles, the machine's own.

    Without boto3 obstore's own chain is left: web identities and the machine's own.
    """
    if environment.get("AWS_ACCESS_KEY_ID") or environment.get("AWS_SKIP_SIGNATURE"):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    try:
        return {"credential_provider": Boto3CredentialProvider()}
    except Exception:  # a profile that is not there, files that cannot be parsed, no credentials at all
        raise in_words(Failure(no_credentials=True), f"s3://{place}", "read", "") from None
