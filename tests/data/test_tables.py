"""Parquet and Arrow files, and datasets on the hub: the same records as from JSON Lines."""

from __future__ import annotations

from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import ipc, parquet

from hayless.core.errors import FileDamaged, NotSupported, RequestError, WorkError
from hayless.data.config import Source
from hayless.data.sources import fingerprint, read_source
from tests.data import made

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}", "name": None}]}
    for n in range(2500)
]


def read(path, **options):
    return read_source(Source(path=str(path), **options))


def write(path, rows, form):
    table = pyarrow.Table.from_pylist(rows)
    if form == "parquet":
        parquet.write_table(table, path, row_group_size=700)
    else:
        with (ipc.new_stream if form == "stream" else ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
def test_a_table_gives_what_json_lines_give(tmp_path, form):
    name = "rows.parquet" if form == "parquet" else "rows.arrow"
    found = read(write(tmp_path / name, ROWS, form))
    expected = read(made.write_lines(tmp_path / "rows.jsonl", ROWS))
    assert [record.messages for record in found.records] == [record.messages for record in expected.records]
    assert [found.records[0].id, found.records[-1].id] == [f"{name}:1", f"{name}:2500"]
    kind = name.rpartition(".")[2]
    assert f"1 {kind} file, messages (detected), 2,500 records" in found.description


def test_wrong_rows_are_counted_in_rows(tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": "a"}, {"text": None}], "parquet")
    with pytest.raises(RequestError, match=r"a\.parquet, row 2: text is null \(read as jsonl\)"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_is_named(tmp_path, name):
    path = write(tmp_path / name, ROWS, "parquet" if name.endswith("parquet") else "stream")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FileDamaged, match=name):
        read(path)


def test_what_the_datasets_library_saves_is_read_as_a_folder(tmp_path):
    datasets.Dataset.from_list([{"text": f"text {n}"} for n in range(5)]).save_to_disk(str(tmp_path / "saved"))
    found = read(tmp_path / "saved")
    assert [record.text for record in found.records] == [f"text {n}" for n in range(5)]
    assert "passed over" in found.description


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The library's two functions with a dataset of three rows behind them; `calls` are what they were asked."""
    calls: list[dict[str, Any]] = []
    rows = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(3)]

    def load(name, subset=None, **asked):
        calls.append({"name": name, "subset": subset, **asked})
        table = datasets.Dataset.from_list(rows)
        return table.to_iterable_dataset() if asked["streaming"] else table

    class Builder:
        config_id, hash = "default", "abc"

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_is_read_and_its_code_never_run(hub, streaming):
    source = Source(hub="some/data", subset="en", split="test", revision="v1", streaming=streaming, limit=2)
    found = read_source(source)
    assert [(record.id, record.prompt, record.output) for record in found.records] == [
        ("some/data/test:1", "p0", "c0"),
        ("some/data/test:2", "p1", "c1"),
    ]
    assert "some/data (en), test: hub dataset, prompt_completion (detected), 2 records" in found.description
    assert hub == [{"name": "some/data", "subset": "en", "split": "test", "revision": "v1", "streaming": streaming}]
    assert fingerprint(source) != fingerprint(source.model_copy(update={"revision": "v2"}))


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (datasets.exceptions.DatasetNotFoundError("x"), RequestError, "no dataset some/data"),
        (datasets.exceptions.DatasetNotFoundError("'x' is a gated dataset on the Hub."), RequestError, "gated"),
        (ConnectionError("Couldn't reach https://host/x"), WorkError, "could not be reached"),
        (ValueError("Unknown split 'tes'. See https://host/x"), RequestError, "Unknown split 'tes'"),
        (RuntimeError("Dataset scripts are no longer supported"), NotSupported, "never run"),
        (datasets.exceptions.DatasetGenerationError("broken"), WorkError, "broken"),
    ],
)
def test_errors_of_the_hub_are_in_words_without_addresses(hub, monkeypatch, error, expected, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    for ask in (read_source, fingerprint):
        with pytest.raises(expected, match=reason) as caught:
            ask(Source(hub="some/data"))
        assert "://" not in str(caught.value)


def test_offline_the_real_library_is_answered_in_words(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkError, match="could not be reached"):
        read_source(Source(hub="no-such-owner/no-such-data"))


def test_ids_that_are_none(hub, tmp_path):
    with pytest.raises(RequestError, match="not the id of a dataset"):
        read_source(Source(hub="../data"))
    (tmp_path / "local").mkdir()
    with pytest.raises(RequestError, match="is a file or folder here"):
        read_source(Source(hub="local"))


def test_what_is_for_the_hub_is_refused_elsewhere():
    for wrong in ({"split": "test"}, {"streaming": True}, {"limit": 3}, {"subset": "x"}, {"revision": "x"}):
        with pytest.raises(ValueError, match="for hub datasets only"):
            Source(path="x", **wrong)
    with pytest.raises(ValueError, match="exactly one of path, builtin and hub"):
        Source(path="x", hub="y")
    assert Source.model_validate(Source(path="x").model_dump()) == Source(path="x")
