"""Files, folders, URLs and the hub; downloads that go wrong leave nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save, save_file

from zoo.checkpoints import read_state_dict
from zoo.checkpoints.sources import locate
from zoo.errors import ZooError

WEIGHTS = {"x": torch.arange(5000.0)}
FILE = save(WEIGHTS)
DIGEST = hashlib.sha256(FILE).hexdigest()


def saved(**content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# folders


def test_folder_prefers_the_usual_names(tmp_path: Path) -> None:
    for name, value in [
        ("zzz.pth", 0),
        ("checkpoints/last.ckpt", 1),
        ("checkpoints/best.ckpt", 2),
        ("pytorch_model.bin", 3),
        ("model.safetensors", 4),
    ]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        weights = {"x": torch.tensor([value])}
        save_file(weights, path) if name.endswith("safetensors") else torch.save(weights, path)
        assert read_state_dict(tmp_path)["x"].item() == value, name
        assert locate(tmp_path).name == f"{tmp_path}/{name}"


def test_folder_without_or_with_several(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hi")
    with pytest.raises(ZooError, match=r"has no checkpoint: expected model\.safetensors, "):
        locate(tmp_path)
    torch.save(WEIGHTS, tmp_path / "a.pth")
    torch.save(WEIGHTS, tmp_path / "b.ckpt")
    with pytest.raises(ZooError, match=r"has 2 checkpoints, name one: a\.pth, b\.ckpt"):
        locate(tmp_path)
    (tmp_path / "b.ckpt").unlink()
    assert locate(tmp_path).files == (tmp_path / "a.pth",)


def test_what_is_no_source(tmp_path: Path) -> None:
    for source, message in [
        ("", "no checkpoint was given"),
        (tmp_path / "missing.pth", r"there is no file or folder .*missing\.pth"),
        ("s3://bucket/a.pth", "s3:// is not a known source"),
        ("hf://only-an-owner", "expected hf://owner/name"),
    ]:
        with pytest.raises(ZooError, match=message):
            locate(source)


def test_digest_of_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(FILE)
    assert locate(path, sha256=DIGEST).files == (path,)
    assert locate(path.as_uri(), sha256=DIGEST[:8].upper()).files == (path,)
    with pytest.raises(ZooError, match=f"has SHA-256 {DIGEST}, expected 00000000"):
        locate(path, sha256="00000000")
    with pytest.raises(ZooError, match="not 8 to 64 hexadecimal digits"):
        locate(path, sha256="my checksum")


# URLs


class Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        name = self.path.rpartition("/")[2]
        if name.startswith("missing"):
            self.send_error(404)
            return
        if name.startswith("broken"):
            self.send_error(503)
            return
        body = b"<html>please log in</html>" if name.startswith("login") else FILE
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if name.startswith("cut") else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / "zoo"


def test_download_once(server: str, cache: Path) -> None:
    url = f"{server}/release/model.safetensors?download=1"
    assert torch.equal(read_state_dict(url)["x"], WEIGHTS["x"])
    assert torch.equal(read_state_dict(url, sha256=DIGEST)["x"], WEIGHTS["x"])
    assert len(Handler.requests) == 1
    read_state_dict(f"{server}/other/model.safetensors")  # the same name, another file
    assert len(Handler.requests) == 2
    assert len(list(cache.iterdir())) == 2
    with pytest.raises(ZooError, match="expected ffffffff"):
        read_state_dict(url, sha256="f" * 8)


def test_digest_in_the_name(server: str, cache: Path) -> None:
    read_state_dict(f"{server}/model-{DIGEST[:8]}.safetensors")
    read_state_dict(f"{server}/model-20240101.safetensors")  # a date
    with pytest.raises(ZooError, match="expected 0123abcd"):
        read_state_dict(f"{server}/model-0123abcd.safetensors")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.pth", "answers 404 Not Found: check the address"),
        ("broken.pth", "answers 503 Service Unavailable: try later"),
        ("cut.safetensors", rf"ended after 1000 of {len(FILE)} bytes: try again"),
        ("login.pth", r"login\.pth is a web page, not weights"),
    ],
)
def test_failed_download_leaves_nothing(server: str, cache: Path, name: str, message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        read_state_dict(f"{server}/{name}")
    assert server in str(caught.value)
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(server: str, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(ZooError, match=r"model\.pth could not be stored in .*zoo: "):
        read_state_dict(f"{server}/model.pth")


def test_unreachable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ZooError, match=r"cannot be reached \(.*refused"):
        read_state_dict("http://127.0.0.1:9/model.pth")
    assert list(cache.iterdir()) == []


# the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``owner/name/revision`` stands for the hub."""

    def folder(repository: str, revision: str | None) -> Path:
        place = tmp_path / repository
        if not place.is_dir():
            raise http_error(errors.RepositoryNotFoundError)
        if not (place / (revision or "main")).is_dir():
            raise http_error(errors.RevisionNotFoundError)
        return place / (revision or "main")

    def hf_hub_download(repository: str, file: str, revision: str | None = None) -> str:
        path = folder(repository, revision) / file
        if not path.is_file():
            raise errors.EntryNotFoundError("404")
        return str(path)

    def list_repo_files(repository: str, revision: str | None = None) -> list[str]:
        place = folder(repository, revision)
        return [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    main = tmp_path / "owner" / "name" / "main"
    (main / "sub").mkdir(parents=True)
    torch.save(WEIGHTS, main / "pytorch_model.bin")
    torch.save({"x": torch.ones(1)}, main / "sub" / "other.pth")
    old = tmp_path / "owner" / "name" / "v1"
    old.mkdir()
    save_file({"a": torch.zeros(2)}, old / "one.safetensors")
    save_file({"b": torch.zeros(3)}, old / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (old / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def http_error(kind: type[Exception]) -> Exception:
    """Without the response, whose class differs between versions of the hub's client."""
    error = kind.__new__(kind)
    Exception.__init__(error, "404")
    return error


def test_hub(hub: Path) -> None:
    assert torch.equal(read_state_dict("hf://owner/name")["x"], WEIGHTS["x"])
    assert read_state_dict("hf://owner/name/sub/other.pth@main")["x"].item() == 1
    assert {n: len(t) for n, t in read_state_dict("hf://owner/name@v1").items()} == {"a": 2, "b": 3}
    assert locate("hf://owner/name").name == "hf://owner/name/pytorch_model.bin"


@pytest.mark.parametrize(
    "source, message",
    [
        ("hf://nobody/name", "there is no such public repository"),
        ("hf://owner/name@v9", "has no revision 'v9'"),
        ("hf://owner/name/missing.pth", r"owner/name has no file 'missing\.pth'"),
    ],
)
def test_hub_without(hub: Path, source: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        read_state_dict(source)


@pytest.mark.parametrize(
    "error, message",
    [
        (errors.LocalEntryNotFoundError("no network. long text"), "check the network"),
        (errors.OfflineModeIsEnabled("offline mode"), "cannot be fetched: offline mode"),
        (errors.HFValidationError("bad name"), "cannot be fetched: bad name"),
    ],
)
def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    with pytest.raises(ZooError, match=message):
        read_state_dict("hf://owner/name")
