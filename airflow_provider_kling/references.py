"""
Makes a request's files usable for the service: looks at them before any money is spent, then uploads them.

A file is a path here, or a URI in object storage. The service fetches references itself, so it needs their URLs.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from airflow_provider_kling.api.errors import InvalidRequestError, KlingError
from airflow_provider_kling.api.media import (
    ImageFacts,
    MediaLibraryMissingError,
    UnreadableMediumError,
    VideoFacts,
    image_fault,
    read_image,
    read_video,
    size_fault,
    video_fault,
)
from airflow_provider_kling.api.reachability import why_unreachable
from airflow_provider_kling.api.request import Fault
from airflow_provider_kling.hooks.upload import BLOCK_BYTES, UnusableFileError, open_file
from airflow_provider_kling.result import address_without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_kling.api.request import LocalReference, VideoRequest
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.waiting import Uploads

KEPT_SECONDS = 6 * 24 * 3600.0
"""How long an upload is used, seconds. The service keeps it 7 days, and fetches it only when it makes the video."""
_LONGEST_URL = 500


@dataclass(frozen=True)
class CheckedFile:
    """
    A file that the service takes as a reference.

    :param reference: where it is, as the request has it.
    :param size_bytes: its size.
    :param sha256: its checksum, in hexadecimal digits.
    :param facts: what it says of itself.
    """

    reference: str
    size_bytes: int
    sha256: str
    facts: ImageFacts | VideoFacts


@dataclass(frozen=True)
class Checked:
    """
    What is known of a request's references.

    :param files: those that have to be uploaded, each once, in the order of the request's fields.
    :param base_video_seconds: length of the video to be edited, which is that of the result too; None where there
        is none, or where it is not a file of ours.
    """

    files: tuple[CheckedFile, ...] = ()
    base_video_seconds: float | None = None


class References:
    """
    The references of one request.

    Each file is read once for its check and once more for its upload, however often the request names it.

    :param hook: the service.
    :param request: whose references they are.
    :param log: where to tell about them.
    """

    def __init__(self, hook: KlingHook, request: VideoRequest, log: Any) -> None:
        self._hook = hook
        self._request = request
        self._log = log
        self._local = request.local_references()
        self._checked: Checked | InvalidRequestError | None = None
        self._digests: dict[str, str] = {}
        self._uploads: dict[str, tuple[str, float]] = {}

    def check(self) -> Checked:
        """
        Hold all references to the service's limits, as far as they can be looked at from here. Nothing is sent.

        :raises InvalidRequestError: with every fault of every reference.
        :raises FileUnavailableError: where a file cannot be read just now.
        :raises MediaLibraryMissingError: where what looks into files is not installed.
        """
        if self._checked is None:
            try:
                self._checked = self._look()
            except InvalidRequestError as error:
                self._checked = error
        if isinstance(self._checked, InvalidRequestError):
            raise self._checked
        return self._checked

    def identity(self) -> dict[str, Any]:
        """
        Return what the request asks for, whatever URLs its files get: each file is named by its content.

        Without files it is the request's JSON. It can be had where the files cannot be looked into.

        :return: the request's JSON with ``sha256:…`` in place of each file.
        :raises InvalidRequestError: where a file is not there or too large.
        :raises FileUnavailableError: where a file cannot be read just now.
        """
        faults = []
        for local in self._local:
            if local.reference not in self._digests:
                try:
                    with open_file(local.reference) as file:
                        self._digests[local.reference] = _sha256(file, local.kind)
                except (UnusableFileError, UnreadableMediumError) as error:
                    faults.append(_fault(local, error))
        if faults:
            raise InvalidRequestError(faults)
        named = {reference: f"sha256:{digest}" for reference, digest in self._digests.items()}
        return self._request.with_references(named).to_body()

    def upload(self) -> VideoRequest:
        """
        Upload the files, each once, and return the request with their URLs. What was uploaded is not uploaded again.

        :raises KlingError: as :meth:`check` does, or where a file was changed since then, or the service did not take
            it; nothing was billed.
        """
        urls = {}
        for file in self.check().files:
            if file.sha256 not in self._uploads:
                self._log.info("Uploading %s (%d bytes).", file.reference, file.size_bytes)
                began = time.time()
                self._uploads[file.sha256] = (
                    self._hook.upload_file(file.reference, sha256=file.sha256),
                    began,
                )
            urls[file.reference] = self._uploads[file.sha256][0]
        return self._request.with_references(urls)

    @property
    def uploads(self) -> Uploads:
        """
        What was uploaded, for another process of this attempt; it is stored in clear text.

        An address that gives access by itself is left out, and one that is long: that file is uploaded again.
        """
        return {
            digest: (url, at)
            for digest, (url, at) in self._uploads.items()
            if len(url) <= _LONGEST_URL and address_without_secrets(url) == url
        }

    def take_up(self, uploads: Uploads) -> None:
        """
        Use what another process of this attempt has uploaded. A file that has changed since is not among it.

        :param uploads: what :attr:`uploads` was there.
        """
        latest = time.time() - KEPT_SECONDS
        self._uploads |= {digest: upload for digest, upload in uploads.items() if upload[1] > latest}

    def _look(self) -> Checked:
        faults = [*self._addresses_out_of_reach(), *self._faults_of_inline_images()]
        seen: dict[tuple[str, str], CheckedFile | UnusableFileError | UnreadableMediumError] = {}
        obstacle: KlingError | None = None
        for local in self._local:
            key = (local.reference, local.kind)
            if key not in seen:
                try:
                    seen[key] = self._look_at(local)
                except (UnusableFileError, UnreadableMediumError) as error:
                    seen[key] = error
                except KlingError as error:
                    # Told only where there are no faults: those stay, and this may pass.
                    obstacle = obstacle or error
                    continue
            found = seen[key]
            if not isinstance(found, CheckedFile):
                faults.append(_fault(local, found))
        if faults:
            raise InvalidRequestError(faults)
        if obstacle is not None:
            raise obstacle
        files = {file.reference: file for file in seen.values() if isinstance(file, CheckedFile)}
        base = self._request.base_video
        facts = files[base.video_url].facts if base is not None and base.video_url in files else None
        seconds = facts.duration_seconds if isinstance(facts, VideoFacts) else None
        return Checked(tuple(files.values()), seconds)

    def _look_at(self, local: LocalReference) -> CheckedFile:
        with open_file(local.reference) as file:
            facts: ImageFacts | VideoFacts
            digest = _sha256(file, local.kind)
            if local.kind == "image":
                facts = read_image(file)
                fault = image_fault(facts)
            else:
                facts = read_video(file)
                fault = video_fault(facts)
        if fault:
            raise UnreadableMediumError(fault)
        self._digests[local.reference] = digest
        return CheckedFile(local.reference, facts.size_bytes, digest, facts)

    def _addresses_out_of_reach(self) -> Iterator[Fault]:
        images, videos = self._request.image_list or (), self._request.video_list or ()
        addresses = [(f"image_list[{i}].image_url", image.image_url) for i, image in enumerate(images)]
        addresses += [(f"video_list[{i}].video_url", video.video_url) for i, video in enumerate(videos)]
        urls = [its for its in addresses if its[1][:8].lower().startswith(("http://", "https://"))]
        # A service in a private network, such as the emulator, can reach what is there.
        if not urls or why_unreachable(self._hook.settings.base_url):
            return
        for field, url in urls:
            why = why_unreachable(url)
            if why:
                yield Fault(
                    field,
                    address_without_secrets(url),
                    f"the service fetches it over the internet, and {why}; give the file's path to have it uploaded",
                )

    def _faults_of_inline_images(self) -> Iterator[Fault]:
        for i, image in enumerate(self._request.image_list or ()):
            content = image.content
            if content is None:
                continue
            try:
                fault = image_fault(read_image(io.BytesIO(content)))
            except UnreadableMediumError as error:
                fault = str(error)
            except MediaLibraryMissingError:
                return  # the service will look at them
            if fault:
                yield Fault(f"image_list[{i}].image_url", image.image_url, fault)


def _fault(local: LocalReference, error: UnusableFileError | UnreadableMediumError) -> Fault:
    if isinstance(error, UnusableFileError):
        return Fault(local.field, local.reference, f"the file{error.what.removeprefix(local.reference)}")
    return Fault(local.field, local.reference, str(error))


def _sha256(file: BinaryIO, kind: Literal["image", "video"]) -> str:
    """
    Return the checksum of a file.

    :raises UnreadableMediumError: where it has no size that the service takes; then it is not read.
    """
    fault = size_fault(kind, file.seek(0, 2))
    if fault:
        raise UnreadableMediumError(fault)
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
