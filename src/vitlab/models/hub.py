"""Published weights: from a cache on this disk, downloaded into it, or an error that says what to fetch."""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError

from vitlab.core.errors import UserError

log = logging.getLogger("vitlab")

# The usual names of a whole network's weights in a repository of the hub; the first is preferred.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def check_reachable(url: str) -> None:
    """Ask for ``url`` once and raise if there is no answer; the clients would retry for most of a minute."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=5).close()
    except HTTPError as error:
        if error.code >= 500:
            raise  # a proxy, or a hub that is down; below 500 the client knows more, such as a token
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # the client brings its own certificates
            raise


@contextmanager
def fetching(name: str, what: str, url: str, *, offline: bool = False) -> Iterator[None]:
    """Run a download; if it fails, raise a UserError that names what to fetch by hand."""
    try:
        if offline:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        check_reachable(url)
        log.info("fetching the pretrained weights of %s", name)
        yield
    except Exception as error:  # whatever a client raises
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(
            f"The pretrained weights of {name} are not on this machine and could not be fetched ({reason}). "
            f"Where there is network, fetch {what}; put the file on this machine, and set "
            "model.pretrained=false model.checkpoint_path=<path of the file, or of its folder>."
        ) from error


def fetch_from_hub(
    name: str, hub_id: str, file: str | None, cache_dir: str | None, address: str | None
) -> Path:
    """Return a file of the hub, from its cache on this disk or downloaded into it.

    ``HF_ENDPOINT`` says where the hub is, ``HF_HUB_CACHE`` or ``HF_HOME`` where the cache is. A cached file
    is used as it is; the hub is not asked for a newer one. If there is none and no download: a UserError.

    Args:
        name: of the network, for messages.
        hub_id: repository, or repository@revision.
        file: name in the repository; None: the usual ones.
        cache_dir: instead of the usual cache.
        address: of the same weights elsewhere, for the message.
    """
    repository, _, revision = hub_id.partition("@")
    where: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
    files = (file,) if file else HUB_FILES
    for candidate in files:
        if isinstance(found := try_to_load_from_cache(repository, candidate, **where), str):
            return Path(found)
    url = hf_hub_url(repository, files[0], revision=revision or None)
    what = f"{files[0]} of {repository} ({url}" + (f", or {address})" if address else ")")
    with fetching(name, what, url, offline=constants.HF_HUB_OFFLINE):
        for candidate in files[:-1]:
            with suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, candidate, **where))
        return Path(hf_hub_download(repository, files[-1], **where))


def fetch_from_url(name: str, url: str, cache_dir: str | None = None) -> Path:
    """Return the file at an address, as `fetch_from_hub` does; the cache is torch's (``TORCH_HOME``)."""
    folder = Path(cache_dir or Path(torch.hub.get_dir()) / "checkpoints")
    path = folder / Path(urlparse(url).path).name
    if not path.is_file():
        with fetching(name, url, url):
            folder.mkdir(parents=True, exist_ok=True)
            # torch.hub's convention: a file's name ends in the beginning of its SHA-256.
            checksum = torch.hub.HASH_REGEX.search(path.name)
            torch.hub.download_url_to_file(url, str(path), checksum[1] if checksum else None)
    return path
