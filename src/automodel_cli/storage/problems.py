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

_STATUS = re.compile(r"status(?: code)?:? (\d{3})\b")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_PATH = re.compile(r"(https?://[^/\s]+)/\S*")  # of a request: names of objects are no words of an error
_PASSING = frozenset({408, 429})
_NOT_REACHED = ("Connect", "dns error", "error trying to connect", "tcp connect", "error sending request")
_NO_CREDENTIALS = ("169.254.169.254", "metadata", "session.get_credentials", "credential", "Unable to load", "token")


@dataclass(frozen=True)
class Failure:
    """One failed request.

    Attributes:
        status: of HTTP; 0 where there was no answer, or the answer was cut.
        code: of the provider, "" without one.
        reached: whether somebody answered.
        no_credentials: it failed before a request, for want of credentials.
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
    if status is not None:
        return Failure(int(status[1]), code[1] if code else "")
    kind, text = type(error).__name__, _PATH.sub(r"\1", text)
    if kind == "UnauthenticatedError" or isinstance(error, ValueError) or any(word in text for word in _NO_CREDENTIALS):
        return Failure(no_credentials=True)
    if isinstance(error, FileNotFoundError):
        return Failure(404)
    if kind == "PermissionDeniedError" or isinstance(error, PermissionError):
        return Failure(403)
    return Failure(reached=not any(word in text for word in _NOT_REACHED))


def in_words(failure: Failure, url: str, doing: str, endpoint: str) -> AutomodelError:
    """The error that people read.

    Args:
        doing: what was tried: "read", "list", "write".
        endpoint: host and port that were asked, without anything else.
    """
    address = split_url(url)
    place = f"{address.scheme}://{address.place}"
    if failure.no_credentials:
        return ConfigError(f"no credentials for {place} were found", _CREDENTIALS[address.scheme])
    if failure.code == "NoSuchBucket" or (failure.status == 404 and url == place):
        return ConfigError(f"there is no bucket {place}", "check its name, the account and the endpoint")
    if failure.status == 404:
        return ObjectMissing(f"there is no {url}", "check the URL")
    if failure.status in (401, 403):
        reason = _REFUSALS.get(failure.code, "these credentials may not do that")
        return ConfigError(f"cannot {doing} {url}: {reason} ({failure})", _CREDENTIALS[address.scheme])
    if failure.status in (301, 307) or failure.code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return ConfigError(f"{place} is in another region ({failure})", "set AWS_REGION to the bucket's region")
    if not failure.reached:
        return AutomodelError(
            f"cannot {doing} {url}: {endpoint} is not reached", "check the network and the endpoint (AWS_ENDPOINT_URL)"
        )
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
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true for public buckets",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or run az login with AZURE_USE_AZURE_CLI=true",
    "hf": "run hf auth login, or set HF_TOKEN",
    "file": "check the permissions of the folder",
}
