"""Where weights come from: a file, a folder, a URL or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from zoo.atomic import part_of, sweep
from zoo.checkpoints.formats import file_format, read_index
from zoo.errors import ZooError

#: What a folder is searched for, best first; a run of ours has its best epoch below checkpoints.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "best.ckpt",
    "last.ckpt",
)
_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".pth.tar")
_TIMEOUT_S = 30
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    ValueError,
)


@dataclass(frozen=True)
class Located:
    """A checkpoint on this machine.

    Attributes:
        name: what the user gave, with the file that was chosen in it.
        files: its files; one unless it is sharded.
        index: tensor name -> file of a sharded checkpoint, else None.
    """

    name: str
    files: tuple[Path, ...]
    index: dict[str, Path] | None = None


def locate(source: str | os.PathLike[str], *, sha256: str | None = None) -> Located:
    """Find a checkpoint, downloading it when it is remote.

    Args:
        source: a file; a folder, searched for ``WEIGHT_FILES`` and then for the only weights file
            in it; an ``http(s)://`` URL, kept in ``torch.hub.get_dir()/checkpoints/zoo``; or
            ``hf://owner/name[/file][@revision]``, kept in the Hugging Face cache.
        sha256: hexadecimal digest, or at least its first 8 digits, that a single file must have.
            The digest in a downloaded file's name (``name-0123abcd.pth``) is always checked.

    Raises:
        ZooError: if nothing is there, it cannot be fetched, or the digest differs.
    """
    text = os.fspath(source)
    if not text:
        raise ZooError(
            "no checkpoint was given: expected a file, a folder, a URL or hf://owner/name"
        )
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ZooError(f"sha256='{sha256}' is not 8 to 64 hexadecimal digits")
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", text)
    if scheme is None:
        found = _local(Path(text).expanduser())
    elif scheme[1].lower() in ("http", "https"):
        return Located(text, (download(text, sha256=sha256),))
    elif scheme[1].lower() == "hf":
        found = _from_hub(text)
    elif scheme[1].lower() == "file":
        found = _local(Path(urllib.request.url2pathname(urllib.parse.urlsplit(text).path)))
    else:
        raise ZooError(
            f"'{text}': {scheme[1]}:// is not a known source; expected a file, a folder, http://, "
            "https:// or hf://owner/name"
        )
    if sha256 is not None:
        if len(found.files) != 1:
            raise ZooError(f"{found.name} has {len(found.files)} files: sha256= is for one file")
        _check_digest(found.name, file_digest(found.files[0]), sha256)
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _check_digest(name: str, found: str, expected: str) -> None:
    if not found.startswith(expected.lower()):
        raise ZooError(
            f"{name} has SHA-256 {found}, expected {expected.lower()}: the file is damaged or "
            "another one; fetch it again, or correct the digest"
        )


def _local(path: Path) -> Located:
    try:
        folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # such as a name that is too long
        raise ZooError(f"{str(path)[:200]}: {error.strerror}, expected a file or folder") from None
    if folder:
        files = [*path.glob("*"), *path.glob("checkpoints/*")]
        names = [file.relative_to(path).as_posix() for file in files if file.is_file()]
        chosen = _choose(names, str(path))
        return _with_shards(f"{path}/{chosen}", chosen, lambda name: path / name)
    if not exists:
        raise ZooError(f"there is no file or folder {path}: check the spelling")
    return _with_shards(str(path), path.name, lambda name: path.parent / name)


def _choose(names: Iterable[str], folder: str) -> str:
    """The weights file of a folder with these files (relative, slashes)."""
    names = set(names)
    for name in WEIGHT_FILES:
        if name in names:
            return name
    for place in ("", "checkpoints"):
        here = sorted(
            name
            for name in names
            if name.endswith(_SUFFIXES) and str(PurePosixPath(name).parent) == (place or ".")
        )
        indices = [n for n in names if n.endswith(".index.json") and "/" not in n]
        candidates = indices if indices and not place else here
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ZooError(
                f"{folder} has {len(candidates)} checkpoints, name one: {', '.join(candidates[:6])}"
            )
    raise ZooError(
        f"{folder} has no checkpoint: expected {', '.join(WEIGHT_FILES[:4])}, a run folder with "
        "checkpoints/best.ckpt, or a single .safetensors, .ckpt, .pth, .pt or .bin file"
    )


def _with_shards(label: str, name: str, fetch: Callable[[str], Path]) -> Located:
    """The files behind one name: itself, or the shards that an index points to."""
    path = fetch(name)
    if not name.endswith(".index.json"):
        return Located(label, (path,))
    names = read_index(path)
    folder = PurePosixPath(name).parent
    files = {shard: fetch(str(folder / shard)) for shard in dict.fromkeys(names.values())}
    for shard, file in files.items():
        if not file.is_file():
            raise ZooError(
                f"{label} points to {shard}, which is missing beside it: fetch it as well"
            )
    return Located(
        label, tuple(files.values()), {tensor: files[shard] for tensor, shard in names.items()}
    )


def download(url: str, *, sha256: str | None = None, folder: Path | None = None) -> Path:
    """Fetch a file once; later calls answer from the cache.

    It is written beside its final place and moved there only when it is complete, has the right
    digest and is not a web page, so an interrupted or wrong download leaves nothing behind.

    Args:
        url: ``http(s)://`` address.
        sha256: digest or its first digits; default: those in the file's name, if it carries some.
        folder: default ``torch.hub.get_dir()/checkpoints/zoo``.
    """
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "checkpoint"
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints" / "zoo"
    # Different addresses often end in the same name, so the address is part of the cached one.
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    if target.is_file():
        if sha256 is not None:
            _check_digest(str(target), file_digest(target), sha256)
        return target
    partial = part_of(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        found = _transfer(url, name, partial)
        expected = sha256 or _digest_in_name(name)
        if expected is not None:
            _check_digest(url, found, expected)
        try:
            file_format(partial)
        except ZooError as error:
            raise ZooError(str(error).replace(str(partial), url)) from None
        os.replace(partial, target)
    except OSError as error:
        raise ZooError(f"{url} could not be stored in {folder}: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return target


def _digest_in_name(name: str) -> str | None:
    """The digest in ``name-0123abcd.pth``; eight digits without a letter are rather a date."""
    match = re.search(r"-([0-9a-f]{8,64})\.[^/]*$", name)
    return match[1] if match and (re.search(r"[a-f]", match[1]) or len(match[1]) == 64) else None


def _transfer(url: str, name: str, target: Path) -> str:
    """Copy a URL into a file with a progress bar; its SHA-256."""
    from rich.console import Console
    from rich.progress import wrap_file

    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "ssm-zoo"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            size = int(response.headers.get("Content-Length") or 0)
            progress = wrap_file(
                response,
                total=size,
                description=f"Downloading {name}",
                console=Console(stderr=True),
            )
            received = 0
            with progress as source, target.open("wb") as file:
                while block := source.read(2**20):
                    digest.update(block)
                    received += file.write(block)
    except urllib.error.HTTPError as error:
        hint = "check the address" if error.code in (404, 410) else "try later, or fetch it by hand"
        raise ZooError(f"{url} answers {error.code} {error.reason}: {hint}") from None
    except _NETWORK_ERRORS as error:
        reason = getattr(error, "reason", error)
        raise ZooError(
            f"{url} cannot be reached ({reason}): check the address and the network"
        ) from None
    if size and received != size:
        raise ZooError(f"{url} ended after {received} of {size} bytes: try again")
    return digest.hexdigest()


def _from_hub(text: str) -> Located:
    import huggingface_hub
    from huggingface_hub import errors

    address, _, revision = text.removeprefix("hf://").partition("@")
    parts = [part for part in address.split("/") if part]
    if len(parts) < 2:
        raise ZooError(f"'{text}': expected hf://owner/name, hf://owner/name/file or ...@revision")
    repository, name = "/".join(parts[:2]), "/".join(parts[2:])

    def fetch(file: str) -> Path:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))

    try:
        if not name:
            files = huggingface_hub.list_repo_files(repository, revision=revision or None)
            name = _choose(files, text)
        return _with_shards(f"hf://{repository}/{name}", name, fetch)
    except errors.GatedRepoError:
        raise ZooError(
            f"{text} is gated: accept its terms on its page and log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ZooError(f"{text}: {repository} has no revision '{revision}'") from None
    except errors.RepositoryNotFoundError:
        raise ZooError(
            f"{text}: there is no such public repository; if it is private, log in with "
            "`hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise ZooError(
            f"{text} is not in the cache and cannot be fetched: check the network, or give a local "
            f"file ({str(error).partition('. ')[0]})"
        ) from None
    except errors.EntryNotFoundError:
        raise ZooError(f"{text}: {repository} has no file '{name}'") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ZooError(f"{text} cannot be fetched: {reason}") from None
