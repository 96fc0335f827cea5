"""A folder of an S3 bucket: its objects read, written, listed and removed; what a server refuses is said in one line.

Of boto3, an optional dependency, imported when a folder is opened: it is small, and has the conditional writes of S3.
Credentials, region and endpoint are those that boto3 finds (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL``, ...).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from ubp.io.errors import UserError

SCHEME: Final = "s3://"
_CONNECT, _READ = 10, 60  # seconds that a server has to answer
_ATTEMPTS: Final = 4  # of a request that a server was too busy for
_CONNECTIONS: Final = 32
_AT_ONCE: Final = 1000  # objects that one request removes, at most
_ABSENT: Final = ("NoSuchKey", "404", "NotFound")
_LOST: Final = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ADVICE: Final = {
    "NoSuchBucket": "there is no such bucket; create it, or correct data_path",
    "AccessDenied": "access denied; have the bucket opened to you, or use other credentials",
    "403": "access denied; have the bucket opened to you, or use other credentials",
    "InvalidAccessKeyId": "the access key is unknown there; correct AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "ExpiredToken": "the credentials have expired; get new ones",
    "PermanentRedirect": "the bucket lies in another region; set AWS_DEFAULT_REGION",
    "InvalidBucketName": "no name that a bucket can have; correct data_path",
    "NotImplemented": "the server knows no conditional writes (If-Match), without which no state is whole",
}


@dataclass(frozen=True)
class Listed:
    """An object as a listing has it.

    Attributes:
        etag: another one whenever the content is another.
        size: bytes.
        modified: when it was written, with a time zone.
    """

    etag: str
    size: int
    modified: datetime


class ObjectFolder(Protocol):
    """A folder of an object store; keys are relative to it."""

    @property
    def address(self) -> str:
        """``s3://BUCKET/PREFIX``, without a slash at its end."""

    def listed(self) -> dict[str, Listed]:
        """All objects, by key."""

    def read(self, key: str) -> tuple[bytes, str] | None:
        """A small object and its ETag; None where there is none."""

    def write(self, key: str, content: bytes, instead_of: str | None) -> bool:
        """Write a small object if what is there is what it was; False, and nothing is written, if it is not.

        Args:
            key: of the object.
            content: of it.
            instead_of: the ETag of what is there; None for nothing.
        """

    def download(self, key: str, file: Path, etag: str | None) -> bool:
        """Write an object's content to a file; False where it is not there, or has another ETag than this one."""

    def upload(self, file: Path, key: str) -> None:
        """Write a file to an object."""

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""


class S3Folder:
    """An `ObjectFolder` of S3, or of a server that speaks its language.

    Args:
        address: ``s3://BUCKET/PREFIX``.

    Raises:
        UserError: boto3 is not installed, or the address names no bucket.
    """

    def __init__(self, address: str) -> None:
        self._bucket, _, prefix = address.removeprefix(SCHEME).rstrip("/").partition("/")
        self.address = f"{SCHEME}{self._bucket}/{prefix}".rstrip("/")
        if not address.startswith(SCHEME) or not self._bucket:
            raise UserError(f"data_path={address}: no address; write it as {SCHEME}BUCKET/PREFIX")
        self._prefix = f"{prefix}/" if prefix else ""
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise UserError(f"{self.address}: boto3 is not installed here; pip install '.[s3]'") from error
        with self._said():
            retries = {"total_max_attempts": _ATTEMPTS, "mode": "standard"}
            config = Config(
                connect_timeout=_CONNECT, read_timeout=_READ, retries=retries, max_pool_connections=_CONNECTIONS
            )
            self._client: Any = boto3.client("s3", config=config)

    def listed(self) -> dict[str, Listed]:
        """See `ObjectFolder.listed`."""
        found = {}
        with self._said():
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            ):
                for each in page.get("Contents", []):
                    key = each["Key"].removeprefix(self._prefix)
                    found[key] = Listed(each["ETag"].strip('"'), each["Size"], each["LastModified"])
        return found

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `ObjectFolder.read`."""
        with self._said(), self._missing(_ABSENT):
            response = self._client.get_object(**self._at(key))
            return response["Body"].read(), response["ETag"].strip('"')
        return None

    def write(self, key: str, content: bytes, instead_of: str | None) -> bool:
        """See `ObjectFolder.write`."""
        condition = {"IfNoneMatch": "*"} if instead_of is None else {"IfMatch": f'"{instead_of}"'}
        with self._said(), self._missing(_LOST + _ABSENT):
            self._client.put_object(**self._at(key), Body=content, **condition)
            return True
        return False

    def download(self, key: str, file: Path, etag: str | None) -> bool:
        """See `ObjectFolder.download`."""
        with self._said(), self._missing(_LOST + _ABSENT):
            self._client.download_file(**self._at(key), Filename=str(file))
            return etag is None or self._client.head_object(**self._at(key))["ETag"].strip('"') == etag
        return False

    def upload(self, file: Path, key: str) -> None:
        """See `ObjectFolder.upload`."""
        with self._said():
            self._client.upload_file(Filename=str(file), **self._at(key))

    def remove(self, keys: Iterable[str]) -> None:
        """See `ObjectFolder.remove`."""
        names = [{"Key": self._prefix + key} for key in keys]
        with self._said():
            for first in range(0, len(names), _AT_ONCE):
                some = {"Objects": names[first : first + _AT_ONCE], "Quiet": True}
                self._client.delete_objects(Bucket=self._bucket, Delete=some)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    @contextmanager
    def _missing(self, codes: tuple[str, ...]) -> Iterator[None]:
        """Go on behind the block where the server answers with one of some codes."""
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in codes:
                raise

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What boto3 raises as one line.

        Raises:
            UserError: instead.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,  # noqa: A004 (the library's)
            HTTPClientError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UserError(
                f"{self.address}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except (ConnectionError, HTTPClientError) as error:
            raise UserError(
                f"{self.address}: the server does not answer ({_first_line(error)}); look at the network and "
                "AWS_ENDPOINT_URL; give the command again"
            ) from error
        except ClientError as error:
            raise UserError(f"{self.address}: {_answer(error)}") from error
        except Boto3Error as error:  # of a transfer: what the server said is in its words only
            known = (advice for code, advice in _ADVICE.items() if f"({code})" in str(error))
            raise UserError(f"{self.address}: {next(known, _first_line(error))}") from error
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no address
            raise UserError(f"{self.address}: {_first_line(error)}") from error


def _answer(error: Any) -> str:  # noqa: ANN401 (botocore has no types)
    """What a server answered, with what to do where that is known."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return _ADVICE.get(code) or f"{code}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
