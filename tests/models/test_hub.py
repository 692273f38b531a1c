"""Published weights, from a cache, from a server on this machine, or not to be had. No network is needed."""

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.error import URLError

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save
from torch import Tensor

from tests.models.helpers import LIBRARY
from vitlab.core.errors import UserError
from vitlab.models.hub import fetch_from_hub, fetch_from_url
from vitlab.models.timm_model import TimmModel
from vitlab.models.torchvision_model import TorchvisionModel

CLOSED = "http://127.0.0.1:9"  # nothing listens there


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path → bytes) as the hub does; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.failing: int | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        self.server.asked.append((self.command, self.path))
        content = self.server.files.get(self.path)
        self.send_response(self.server.failing or (404 if content is None else 200))
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET" and content:
            self.wfile.write(content)

    do_GET = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def point_hub_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What ``HF_ENDPOINT`` does to a process that has not imported the client yet."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        point_hub_at(monkeypatch, running.url)
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=1000).state_dict()


def build(cache: Path | str, name: str = "test_vit") -> TimmModel:
    return TimmModel(**{**LIBRARY, "name": name, "pretrained": True, "kwargs": {"cache_dir": str(cache)}})


def test_weights_come_from_the_hub_once(
    server: Server, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/timm/test_vit.r160_in1k/resolve/main/model.safetensors"] = save(weights)
    model = build(tmp_path)
    assert torch.equal(model.net.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])
    assert model.loaded is not None
    assert model.loaded.source == "timm/test_vit.r160_in1k (model.safetensors)"
    assert model.loaded.resized == ["pos_embed (1, 101, 64) → (1, 5, 64)"]
    assert model.loaded.new == ["head.weight (10, 64)", "head.bias (10,)"]
    assert model.loaded.certain

    # From now on the cache is enough: there may be no network, and nobody is asked.
    asked = len(server.asked)
    again = build(tmp_path)
    point_hub_at(monkeypatch, CLOSED)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    without = build(tmp_path)
    assert len(server.asked) == asked
    for other in (again, without):
        assert torch.equal(other.net.pos_embed, model.net.pos_embed)


def test_a_repository_with_the_older_file_alone(server: Server, tmp_path: Path) -> None:
    server.files["/someone/net/resolve/v2/pytorch_model.bin"] = b"weights"
    path = fetch_from_hub("net", "someone/net@v2", None, str(tmp_path), None)
    assert (path.name, path.read_bytes()) == ("pytorch_model.bin", b"weights")


def test_what_the_library_leaves_over_is_said_and_no_error(
    server: Server, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    surplus = weights | {"teacher.weight": torch.zeros(1)}
    server.files["/timm/test_vit.r160_in1k/resolve/main/model.safetensors"] = save(surplus)
    model = build(tmp_path)
    assert model.loaded is not None
    assert model.loaded.left_out == ["teacher.weight"]


@pytest.mark.parametrize("failing", [503, None], ids=["the hub is down", "no network"])
def test_one_question_and_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    server.failing = failing
    if failing is None:
        point_hub_at(monkeypatch, CLOSED)
    started = time.monotonic()
    with pytest.raises(UserError, match="could not be fetched") as caught:
        build(tmp_path)
    assert time.monotonic() - started < 5
    assert len(server.asked) == (1 if failing else 0)
    url = server.url if failing else CLOSED
    file = f"{url}/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    assert f"fetch model.safetensors of timm/test_vit.r160_in1k ({file})" in str(caught.value)
    assert "model.pretrained=false model.checkpoint_path=<path" in str(caught.value)


def test_the_hubs_own_switch_forbids_questions(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched \(HF_HUB_OFFLINE is set\)"):
        build(tmp_path)
    assert server.asked == []


def test_a_file_that_the_hub_does_not_have(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be fetched"):
        build(tmp_path)


def test_the_published_address_is_named_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_at(monkeypatch, CLOSED)
    with pytest.raises(UserError) as caught:
        build("/none", "resnet10t")
    assert f", or {timm.get_pretrained_cfg('resnet10t').url})" in str(caught.value)
    # An original in a format of its own would not help.
    with pytest.raises(UserError) as caught:
        build("/none", "flexivit_base")
    assert ".npz" not in str(caught.value)


def test_an_address_is_fetched_once_and_checked(server: Server, tmp_path: Path) -> None:
    content = b"weights of a network"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[f"/{name}"] = content
    path = fetch_from_url("net", f"{server.url}/{name}", str(tmp_path / "cache"))
    assert path.read_bytes() == content
    asked = len(server.asked)
    assert fetch_from_url("net", f"{server.url}/{name}", str(tmp_path / "cache")) == path
    assert len(server.asked) == asked

    server.files["/net-00000000.pth"] = content
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_from_url("net", f"{server.url}/net-00000000.pth", str(tmp_path / "cache"))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [name]


def test_torchvisions_weights_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.models.hub.urlopen", Mock(side_effect=URLError("no network")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"vit_b_16 .*fetch https://\S+/vit_b_16-c867db91.pth;"):
        TorchvisionModel(**{**LIBRARY, "name": "vit_b_16", "pretrained": True})
