"""What a client of object storage says when something fails, in words: found, expected, what to do.

Clients print requests, headers and whole answers; none of that is repeated, because it may hold a signature or a key.
What is kept: the HTTP status, the provider's error code (``NoSuchBucket``), and our own name of the object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.storage.store import ObjectMissing
from automodel_cli.storage.urls import split_url

_STATUS = re.compile(r"(?:status(?: code)?:? |\(code: )(\d{3})\b")  # the second of Azure's answers to several requests
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_PATH = re.compile(r"(https?://[^/\s]+)/\S*")  # of a request: names of objects are no words of an error
_PASSING = frozenset({408, 429})
_NOT_REACHED = ("Connect", "dns error", "error trying to connect", "tcp connect", "error sending request")
_MACHINE = ("169.254.169.254", "metadata")  # what a virtual machine asks for credentials; elsewhere anybody may answer
_NO_CREDENTIALS = (*_MACHINE, "session.get_credentials", "credential", "Unable to load", "token")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")


@dataclass(frozen=True)
class Failure:
    """One failed request.

    Attributes:
        status: of HTTP; 0 where there was no answer, or the answer was cut.
        code: of the provider, "" without one.
        reached: whether somebody answered.
        no_credentials: it failed before a request, for want of credentials; ``status``: of who was asked for some.
    """

    status: int = 0
    code: str = ""
    reached: bool = True
    no_credentials: bool = False

    @property
    def passing(self) -> bool:
        """Whether it may succeed when it is tried again."""
        if self.code == "NoSuchUpload":  # the answer to its completion was lost, and this is that to the next try
            return True
        return not self.no_credentials and (self.status == 0 or self.status >= 500 or self.status in _PASSING)

    def __str__(self) -> str:
        said = f"HTTP {self.status}" if self.status else "the connection was cut" if self.reached else "no connection"
        return f"{said} {self.code}".strip()


def failure_of(error: BaseException) -> Failure:
    """What an exception of the client says."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if "Error performing token request" in text:
        return _of_token(_PATH.sub(r"\1", text), int(status[1]) if status else 0)
    if status is not None:
        return Failure(int(status[1]), code[1] if code else "")
    if "Wanted range starting at" in text:  # an answer with nothing in it; others say this status
        return Failure(416)
    kind, text = type(error).__name__, _PATH.sub(r"\1", text)
    if isinstance(error, FileNotFoundError):
        return Failure(404)
    if kind == "PermissionDeniedError" or isinstance(error, PermissionError):
        return Failure(403)
    if kind == "UnauthenticatedError" or isinstance(error, ValueError) or any(word in text for word in _NO_CREDENTIALS):
        return Failure(no_credentials=True)
    return Failure(reached=not any(word in text for word in _NOT_REACHED))


def _of_token(text: str, status: int) -> Failure:
    """Credentials were exchanged for a token that ends after an hour: that fails for passing reasons, too."""
    if Failure(status).passing and status:
        return Failure(status)
    if any(word in text for word in _MACHINE):
        return Failure(no_credentials=True)
    return Failure(status, "", status > 0 or not any(word in text for word in _NOT_REACHED), status > 0)


def in_words(failure: Failure, url: str, doing: str, endpoint: str) -> AutomodelError:
    """The error that people read.

    Args:
        doing: what was tried: "read", "list", "write".
        endpoint: host and port that were asked, without anything else.
    """
    address = split_url(url)
    place = f"{address.scheme}://{address.place}"
    if failure.no_credentials:
        what = "no credentials for {} were found" if not failure.status else "the credentials for {} were refused ({})"
        return ConfigError(what.format(place, failure), _CREDENTIALS[address.scheme])
    is_for_bucket = url == place or doing in ("list", "write")  # what is written need not be there
    if failure.code in _NO_BUCKET or (failure.status == 404 and not failure.code and is_for_bucket):
        kind = {"az": "container", "hf": "repository"}.get(address.scheme, "bucket")
        return ConfigError(f"there is no {kind} {place}", "check its name, the account and the endpoint")
    if failure.status == 404:
        return ObjectMissing(f"there is no {url}", "check the URL")
    if failure.status in (401, 403):
        reason = _REFUSALS.get(failure.code, "these credentials may not do that")
        return ConfigError(f"cannot {doing} {url}: {reason} ({failure})", _CREDENTIALS[address.scheme])
    if failure.status in (301, 307) or failure.code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return ConfigError(f"{place} is in another region ({failure})", "set AWS_REGION to the bucket's region")
    if not failure.reached:
        named = f"check the network and {_ENDPOINTS.get(address.scheme, 'the address')}"
        return AutomodelError(f"cannot {doing} {url}: {endpoint} is not reached", named)
    if failure.passing:
        return AutomodelError(
            f"cannot {doing} {url}: {failure}, again and again",
            "run the same command again later",
        )
    return AutomodelError(f"cannot {doing} {url}: {failure}", "check the URL and what the storage supports")


_REFUSALS = {
    "InvalidAccessKeyId": "the access key is not known",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the credentials have expired",
    "AuthenticationFailed": "the account key is wrong, or the token has expired",
    "AuthorizationPermissionMismatch": "the account has no role that permits it",
}
_ENDPOINTS = {
    "s3": "the endpoint (AWS_ENDPOINT_URL)",
    "az": "the account (AZURE_STORAGE_ACCOUNT_NAME)",
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true for public buckets",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or run az login with AZURE_USE_AZURE_CLI=true",
    "hf": "run hf auth login, or set HF_TOKEN",
    "file": "check the permissions of the folder",
}
