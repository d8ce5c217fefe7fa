"""An S3-compatible server on loopback, and an Airflow connection that leads to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

CONN_ID = "kling_s3"
KEY, SECRET, REGION = "testing", "testing-secret", "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """
    A bucket of its own on the server.

    :param endpoint: the server's URL.
    :param bucket: the bucket's name.
    """

    endpoint: str
    bucket: str

    def uri(self, path: str = "") -> str:
        """Return the URI of something in the bucket, the connection id in it."""
        return f"s3://{CONN_ID}@{self.bucket}/{path}"

    @property
    def connection_uri(self) -> str:
        """The Airflow connection, as a URI."""
        return f"aws://{KEY}:{SECRET}@/?region_name={REGION}&endpoint_url={quote(self.endpoint, safe='')}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to reach the bucket."""
        connection = {
            "conn_type": "aws",
            "login": KEY,
            "password": SECRET,
            "extra": {"region_name": REGION, "endpoint_url": self.endpoint},
        }
        return {
            f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps(connection),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }

    @property
    def client(self) -> Any:
        """A plain S3 client, to look into the bucket past everything of ours."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
        )

    def names(self) -> list[str]:
        """Return the names of all that lies in the bucket."""
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return sorted(each["Key"] for each in found)

    def unfinished(self) -> list[str]:
        """Return the names of uploads that were neither finished nor given up."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return sorted(each["Key"] for each in found)

    def content(self, name: str) -> bytes:
        """Return what lies under a name."""
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()
        return body

    def put(self, name: str, content: bytes) -> None:
        """Put something under a name."""
        self.client.put_object(Bucket=self.bucket, Key=name, Body=content)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Run the server for all tests that ask for it: Airflow keeps a file system for each connection id."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def s3_server(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Return a new bucket; the Airflow connection that leads to it is in the environment."""
    server = S3Server(s3_endpoint, f"videos-{uuid4().hex[:12]}")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.client.create_bucket(Bucket=server.bucket)
    return server
