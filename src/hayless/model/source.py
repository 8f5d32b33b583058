"""Where a model comes from: a folder on this machine, or an id on the Hugging Face hub.

A folder is preferred to an id of the same name. Hub access is huggingface_hub's own, so HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE and HF_HOME work as everywhere; its messages hold addresses, so errors here use words of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import errors as hub

from hayless.core import atomic
from hayless.core.errors import FileDamaged, RequestError, WorkError
from hayless.core.families import read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SENTENCES = "modules.json"
"""The file by which a sentence encoder of sentence-transformers is known; its parts lie in folders of their own."""
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder `source` names, downloaded first if it is a hub id.

    Only safetensors, JSON and tokenizer files are fetched. RequestError for a folder or id that does not exist or may
    not be read; WorkError when the hub cannot be reached.
    """
    folder = _existing(source, revision)
    if folder is not None:
        return folder
    name = str(source)

    def download(**patterns: Any) -> Path:
        return Path(
            _fetch(name, revision, lambda: huggingface_hub.snapshot_download(name, revision=revision, **patterns))
        )

    # Some models have their weights a second time, in their makers' own layout.
    folder = download(allow_patterns=_FILES, ignore_patterns=["*/*", "consolidated*"])
    if (folder / "adapter_config.json").is_file():
        folder = download(allow_patterns=[f"base/{pattern}" for pattern in _FILES])
    if (folder / SENTENCES).is_file():
        inner = [f"*/{pattern}" for pattern in _FILES]
        folder = download(allow_patterns=inner, ignore_patterns=["onnx/*", "openvino/*"])
    return folder


def fetch_config(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """config.json of a folder or hub id, without its weights. Raises what `local_folder` raises."""
    return read_config(_folder_with("config.json", source, revision))


def fetch_tokenizer(source: str | Path, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a folder or hub id, as the `tokenizers` library has it. RequestError where there is none of
    this kind, and what `local_folder` raises."""
    from tokenizers import Tokenizer

    path = _folder_with("tokenizer.json", source, revision) / "tokenizer.json"
    if not path.is_file():
        raise RequestError(f"There is no {path}.", hint="Give a folder or hub id with a tokenizer.json.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare Exceptions for files it cannot read.
        raise FileDamaged(
            f"{path} cannot be read: {' '.join(str(error).split())[:300]}", hint="Copy it again."
        ) from None


def _folder_with(file: str, source: str | Path, revision: str | None) -> Path:
    """The folder `source`, or one that `file` of a hub id was fetched to."""
    folder = _existing(source, revision)
    if folder is None:
        name = str(source)
        path = _fetch(name, revision, lambda: huggingface_hub.hf_hub_download(name, file, revision=revision), file)
        folder = Path(path).parent
    return folder


def _existing(source: str | Path, revision: str | None) -> Path | None:
    """The local folder, or None for what can only be a hub id."""
    if not str(source):
        raise RequestError("No model is named.", hint="Give a Hugging Face model folder or a hub id.")
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise RequestError(f"There is no folder {source}: {error}") from None
    if path.absolute().name:
        atomic.recover(path.absolute())
    if path.is_dir():
        if revision is not None:
            raise RequestError(
                f"revision = {revision!r} is for hub ids, and {source} is a folder.", hint="Leave revision out."
            )
        return path
    if path.exists():
        raise RequestError(f"{source} is a file.", hint="Give the folder that holds config.json, or a hub id.")
    if isinstance(source, Path) or not _REPOSITORY.fullmatch(source):
        raise RequestError(f"There is no folder {source}.", hint="Give a Hugging Face model folder or a hub id.")
    return None


def _fetch(name: str, revision: str | None, download: Callable[[], str], file: str = "config.json") -> str:
    """Run a download with errors a user can act on, none of which quotes an address or a token."""
    at = f" at revision {revision!r}" if revision else ""
    try:
        return download()
    except hub.GatedRepoError:
        raise RequestError(
            f"{name} is gated on the hub.",
            hint="Ask for access on its page, then log in (hf auth login) or set HF_TOKEN.",
        ) from None
    except hub.RevisionNotFoundError:
        raise RequestError(f"{name} has no revision {revision!r} on the hub.") from None
    except hub.RepositoryNotFoundError:
        raise RequestError(
            f"There is no folder {name} here, and no model of that name on the hub that this account can see.",
            hint="Check the spelling; a private model needs HF_TOKEN.",
        ) from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        raise RequestError(
            f"There is no folder {name} here, and {name}{at} on the hub is not in the local cache and cannot be"
            " fetched.",
            hint="Go online once (HF_HUB_OFFLINE unset), or give a folder.",
        ) from None
    except hub.EntryNotFoundError:
        raise RequestError(f"{name} has no {file} on the hub{at}.", hint="Is it a transformers model?") from None
    except hub.HFValidationError:
        raise RequestError(f"There is no folder {name}, and {name!r} is not a hub id.") from None
    except OSError as error:
        # A hub error of HTTP is an OSError too, and has the response.
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = f"the hub answered {status}" if status else error.strerror or type(error).__name__
        raise WorkError(f"{name} could not be fetched: {said}.", hint="Try again, or give a folder.") from None
    except Exception as error:
        # Errors of the network have their own classes in the client that huggingface_hub happens to use.
        raise WorkError(
            f"{name} could not be fetched: the hub could not be reached ({type(error).__name__}).",
            hint="Try again, or give a folder.",
        ) from None
