"""Datasets on the Hugging Face hub, through the `datasets` library: copied and memory-mapped, or streamed.

Code that comes with a dataset is never run. Hub access is the library's own, so HF_TOKEN, HF_HUB_OFFLINE and HF_HOME
work as everywhere; its messages hold addresses, so errors here use words of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.data.config import Source
from hayless.data.documents import FoundFile
from hayless.data.rows import Row

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def fingerprint(source: Source) -> str:
    """A name for the dataset's content: its configuration and the commits of its files. Raises what `rows` raises."""
    import datasets

    name = _checked(source)
    with _in_words(source):
        builder = datasets.load_dataset_builder(name, source.subset, revision=source.revision)
    return f"{builder.config_id} {builder.hash}"


def rows(source: Source) -> Iterator[Row]:
    """The rows of a source's dataset, the first `limit` where it has one.

    RequestError for a dataset, subset or split that is not there, NotSupported for one that is made by code, WorkError
    where the hub cannot be reached.
    """
    import datasets

    name = _checked(source)
    file = FoundFile(Path(name), f"{name}/{source.split}".replace("#", "%23"), name.rpartition("/")[2], "row")
    with _in_words(source):
        found: Any = datasets.load_dataset(
            name, source.subset, split=source.split, revision=source.revision, streaming=source.streaming
        )
        for number, fields in enumerate(islice(found, source.limit), start=1):
            yield Row(file, number, fields)


def _checked(source: Source) -> str:
    name = source.hub or ""
    if not _ID.fullmatch(name):
        raise RequestError(f"hub = {name!r} is not the id of a dataset.", hint="An id looks like: owner/name")
    if Path(name).exists():
        raise RequestError(f"{name} is a file or folder here.", hint="Give it as path, or run from another folder.")
    return name


@contextmanager
def _in_words(source: Source) -> Iterator[None]:
    """The library's errors as ones that a user can act on."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise RequestError(
                f"{source.hub} is gated on the hub.",
                hint="Ask for access on its page, then log in (hf auth login) or set HF_TOKEN.",
            ) from None
        raise RequestError(
            f"There is no dataset {source.hub} on the hub that this account can see.",
            hint="Check the spelling; a private one needs HF_TOKEN.",
        ) from None
    except ValueError as error:
        raise RequestError(f"{source.name} cannot be read from the hub: {_said(error)}") from None
    except RuntimeError as error:
        if "scripts" not in str(error):
            raise
        raise NotSupported(
            f"{source.hub} is made by a script, and code of others is never run.",
            hint="Use a revision in Parquet (refs/convert/parquet), or download its files and give them as path.",
        ) from None
    except DatasetsError as error:
        raise WorkError(f"{source.name} could not be prepared: {_said(error)}") from None
    except OSError as error:
        raise WorkError(
            f"{source.hub} is not in the local cache and the hub could not be reached ({type(error).__name__}).",
            hint="Go online once (HF_HUB_OFFLINE unset), or download its files and give them as path.",
        ) from None


def _said(error: Exception) -> str:
    """The message on one line, without addresses."""
    return re.sub(r"\S+://\S+", "(address)", " ".join(str(error).split()))[:300]
