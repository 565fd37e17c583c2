"""Object stores: what a root's URI may say, the file system behind it, and what its errors mean.

S3 and whatever speaks like it, and Google Cloud Storage, through ``pyarrow.fs``. The URI says where a server is that is
not the provider's own (``s3://bucket/folder?endpoint_override=http://host:9000``), so that every process which has the
URI finds it. Who may use it is never in the URI, but in the environment of each machine.
"""

import functools
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow.fs as pafs

from distmil.errors import ConfigError

OPTIONS = {
    "s3": ("endpoint_override", "region", "scheme", "tls_ca_file_path"),
    "gs": ("endpoint_override", "scheme"),
}
"""What may follow the question mark, named as pyarrow names it."""
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ANONYMOUS = "anonymous"
_LONGEST = 400
# Where the AWS SDK looks for credentials, but for the role of the machine itself.
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_NO_BUCKET = ("NO_SUCH_BUCKET", "The specified bucket does not exist", "Bucket '")
_REFUSED = (
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "SIGNATURE_DOES_NOT_MATCH",
    "token has expired", "HTTP status 401", "HTTP status 403", "PERMISSION_DENIED", "UNAUTHENTICATED", "OAuth2",
)  # fmt: skip
_ELSEWHERE = ("HTTP status 301", "PERMANENT_REDIRECT", "AuthorizationHeaderMalformed", "configured region")
_SILENT = ("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "curlCode", "UNAVAILABLE")
_NO_ROOM = "Failed to flush response stream"
_BUSY = ("SLOW_DOWN", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "HTTP status 5")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    attempts: int
    request_s: float
    """Without a byte, before a request is tried again."""
    connect_s: float
    limit_s: float
    """Google Cloud Storage: of all attempts together."""


# The pauses between attempts double, by chance, up to 20 s: eight ride out half a minute of refusals.
WORK = Patience(attempts=8, request_s=30, connect_s=10, limit_s=180)
TRIAL = Patience(attempts=3, request_s=10, connect_s=5, limit_s=20)
"""For the first try of a store: a dead server is reported within a minute."""


def resolve_uri(uri: str, *, key: str) -> str:
    """Return a URI that means the same in every process: checked, and with the endpoint that this environment names.

    Args:
        uri: As it was given.
        key: By which key of the configuration, for the messages.

    Raises:
        ConfigError: If it has no bucket, holds credentials, or has an option that is not known.
    """
    parts = urlsplit(uri)
    user, _, bucket = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{bucket}{parts.path}"
    if user and not (parts.scheme == "gs" and user == _ANONYMOUS):
        raise ConfigError(
            f"{key} = {shown!r}: credentials do not belong into a URI, which is shown and recorded; put them "
            "into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or ~/.aws/credentials of every machine"
        )
    if not bucket or parts.fragment:
        raise ConfigError(f"{key} = {uri!r}: expected {parts.scheme}://bucket/folder")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in options.items():
        if name not in OPTIONS[parts.scheme] or not value:
            raise ConfigError(
                f"{key} = {shown!r}: option {name} = {value!r} is not known; expected any of "
                f"{', '.join(OPTIONS[parts.scheme])}, each with a value"
            )
    if parts.scheme == "s3" and "endpoint_override" not in options and (endpoint := _first(ENDPOINT_VARIABLES)):
        options["endpoint_override"] = endpoint
    query = f"?{urlencode(options, safe=':/')}" if options else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}{query}"


def join_uri(uri: str, name: str) -> str:
    """Return the URI of a name below another one; its options stay last."""
    base, mark, options = uri.partition("?")
    return f"{base}/{name}".rstrip("/") + mark + options


def without_options(uri: str) -> str:
    """Return a URI as programs take it that know nothing of its options."""
    return uri.partition("?")[0]


def s3_endpoint(uri: str) -> str | None:
    """Return the address of the server that an s3:// URI names, None if it is the provider's own."""
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    endpoint = options.get("endpoint_override")
    if parts.scheme != "s3" or endpoint is None:
        return None
    return endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}"


def open_filesystem(uri: str, patience: Patience = WORK) -> tuple[pafs.FileSystem, str]:
    """Return a URI's file system, the same one for the same server, and the path on it.

    Raises:
        OSError: If the region of an AWS bucket has to be asked for, and there is no answer.
    """
    parts = urlsplit(uri)
    user, _, bucket = parts.netloc.rpartition("@")
    path = f"{bucket}{parts.path}".rstrip("/")
    if parts.scheme == "gs":
        return _open_gcs(parts.query, bool(user), patience), path
    return _open_s3(bucket, parts.query, patience), path


def read_whole(filesystem: pafs.FileSystem, path: str) -> bytes:
    """Return a file's content by one request; a stream would ask for a quarter of a MB at a time.

    The AWS SDK tries a refused request again, unless the refusal is longer than the file: it has no room for that, and
    gives up. Small files are tried again here.

    Raises:
        OSError: If patience ends, or at once where trying again is of no use.
    """
    attempts = filesystem.patience.attempts if isinstance(filesystem, S3) else 1
    for attempt in range(1, attempts + 1):
        try:
            with filesystem.open_input_file(path) as file:
                return bytes(file.read())
        except OSError as error:
            if _NO_ROOM not in str(error) or attempt == attempts:
                raise
            time.sleep(random.uniform(0, min(20.0, 0.5 * 2**attempt)))  # noqa: S311 (so that clients do not come at once)
    raise AssertionError("there is at least one attempt")


class S3(pafs.S3FileSystem):  # type: ignore[misc]
    """S3 that stays patient when it travels to another process: pyarrow's own loses its retries there."""

    def __init__(self, bucket: str, query: str, patience: Patience) -> None:
        options = dict(parse_qsl(query))
        self._made_from = (bucket, query, patience)
        self.patience = patience
        super().__init__(
            endpoint_override=options.get("endpoint_override"),
            scheme=options.get("scheme"),
            region=_region(bucket, options),
            tls_ca_file_path=options.get("tls_ca_file_path"),
            request_timeout=patience.request_s,
            connect_timeout=patience.connect_s,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=patience.attempts),
            allow_delayed_open=True,  # a small file is one request instead of three, and a put is atomic
            background_writes=False,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_s3, self._made_from


@functools.lru_cache(maxsize=64)
def _open_s3(bucket: str, query: str, patience: Patience) -> S3:
    return S3(bucket, query, patience)


@functools.lru_cache(maxsize=64)
def _open_gcs(query: str, is_anonymous: bool, patience: Patience) -> pafs.FileSystem:
    options = dict(parse_qsl(query))
    limit = timedelta(seconds=patience.limit_s)
    return pafs.GcsFileSystem(anonymous=is_anonymous, retry_time_limit=limit, **options)


def _region(bucket: str, options: Mapping[str, str]) -> str | None:
    """Return the region to sign requests for; AWS is asked where neither URI nor environment say it."""
    region = options.get("region") or _first(REGION_VARIABLES)
    if region or "endpoint_override" in options:
        return region
    return str(pafs.resolve_s3_region(bucket))


def _first(variables: tuple[str, ...]) -> str | None:
    return next((value for name in variables if (value := os.environ.get(name))), None)


def explain(error: OSError, uri: str) -> str:
    """Explain an object store's error, and name what to check."""
    text = " ".join(str(error).split())[:_LONGEST]
    parts = urlsplit(uri)
    bucket = parts.netloc.rpartition("@")[2]
    server = dict(parse_qsl(parts.query)).get("endpoint_override") or "the provider's own server"
    if isinstance(error, FileNotFoundError) or _has(text, _NO_BUCKET):
        return f"there is no bucket {bucket!r} on {server}; make it (distmil never does), or correct the name ({text})"
    if _has(text, _ELSEWHERE):
        return f"bucket {bucket!r} is in another region; set AWS_REGION, or add ?region=... to the URI ({text})"
    if _has(text, _REFUSED):
        return f"{server} denies access to bucket {bucket!r}: {_credentials(parts.scheme)} ({text})"
    if _has(text, _SILENT):
        endpoint = "?endpoint_override=http://host:port in the URI, or AWS_ENDPOINT_URL"
        return f"{server} does not answer; look at the network and at the endpoint ({endpoint}) ({text})"
    if _has(text, _BUSY):
        return f"{server} failed again and again; the same command goes on when it is well ({text})"
    return text


def _has(text: str, marks: tuple[str, ...]) -> bool:
    return any(mark in text for mark in marks)


def _credentials(scheme: str) -> str:
    """Name the credentials to check."""
    if scheme == "gs":
        return (
            "look at GOOGLE_APPLICATION_CREDENTIALS, or at the machine's service account, and at what it may do there"
        )
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if _first(_CREDENTIALS) or file.exists():
        return (
            f"look at the credentials (AWS_ACCESS_KEY_ID, {file}, or the machine's role) and at what they may do there"
        )
    return f"there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write {file}"
