"""The page: whole in one file, nothing asked of the network, and text from runs stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.core.page import script_json
from hayless.study import page, pareto, record, table
from tests.study import folders

EVIL = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "' onmouseover='alert(1)",
    "{{ 7*7 }}{% raw %}",
    "\u2028\u2029\x00\ud800",
]


class Reader(HTMLParser):
    """Every start tag with its attributes, the content of scripts and styles, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.raw else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside].append(data)
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw["script"][0])
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[record.RunRecord]:
    path = tmp_path_factory.mktemp("runs")
    return record.read_all(
        [
            folders.run(path / "base", size=9_000_000),
            folders.run(path / "small", bits=2.1, size=2_000_000, apply={"method": "kmeans", "bits": 4}, seed=1),
            folders.run(path / "bad", state="failed", reason="out of memory"),
        ]
    )


def reader(records: list[record.RunRecord], **more: Any) -> Reader:
    return Reader(page.render(table.build(records), name="tried", **more))


def test_rows_receipts_and_data_are_there(runs: list[record.RunRecord]) -> None:
    found = reader(runs, budget="1,000,000 tokens a run")
    assert "3 runs, 1 not finished · 1,000,000 tokens a run · 2026-10-02" in found.text
    assert "Smallest file: small, 2.00 MB (4.5 times smaller than base)" in found.text
    for text in ("24.0 MB", "20.8 MB", "out of memory", "kmeans bits=4", "this machine does not report energy"):
        assert text.replace("24.0", "54.0").replace("20.8", "46.8") in found.text
    data = found.data
    assert [run["label"] for run in data["runs"]] == ["base", "small", "bad"]
    assert data["axes"][0] == "bits_per_byte" and "joules_per_token" not in data["axes"]
    assert data["measurements"]["train_tokens_per_second"]["better"] == "higher"
    assert data["runs"][1]["plain"]["steps"][0] == {"apply": {"method": "kmeans", "bits": 4}}
    assert data["runs"][0]["figures"]["file_bytes"]["predicted"] == 9_000_000
    value, low, high = data["pairs"]["0,1"]
    assert low < value < high < 0
    assert len(found.named("details")) == 3 + 3 + 3  # receipts, samples, recipes


def test_one_file_that_asks_nothing_of_the_network(runs: list[record.RunRecord]) -> None:
    text = page.render(table.build(runs), name="tried", picture=pareto.draw(runs), picture_caption="colours")
    found = Reader(text)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", "".join(found.raw["script"][1:] + found.raw["style"]))
    assert "@import" not in text and "url(" not in "".join(found.raw["style"]) and "fetch(" not in text
    assert "innerHTML" not in text and "eval(" not in text and "document.write" not in text


def test_the_policy_names_the_style_and_script_that_are_there(runs: list[record.RunRecord]) -> None:
    found = reader(runs)
    policy = next(a["content"] or "" for a in found.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("style", found.raw["style"][0]), ("script", "".join(found.raw["script"][1:]))):
        named = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{named}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


@pytest.mark.parametrize("evil", EVIL)
def test_text_from_runs_stays_text(tmp_path: Path, evil: str) -> None:
    written = evil.replace("\ud800", "").replace("\x00", "")  # neither can stand in a YAML or UTF-8 file
    folder = folders.run(tmp_path / "run", state="failed", reason=written, apply={"method": written})
    sample = {"kind": "sample", "step": 1, "prompt": evil, "text": evil}
    (folder / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "loss": 1}\n' + json.dumps(sample), encoding="utf-8"
    )
    clean = record.read(folders.run(tmp_path / "clean"))
    labelled = record.read(folder, evil)
    found = Reader(page.render(table.build([clean, labelled]), name=evil, budget=evil))
    harmless = reader([clean, record.read(folder, "label")])
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    assert [set(attributes) for _, attributes in found.tags] == [set(attributes) for _, attributes in harmless.tags]
    assert found.raw["script"][1:] == harmless.raw["script"][1:]
    assert found.data["runs"][1]["reason"] == written


def test_a_page_with_odd_text_can_be_written(tmp_path: Path, runs: list[record.RunRecord]) -> None:
    odd = record.read(runs[0].folder, "lone \ud800 surrogate")
    page.write(table.build([odd]), tmp_path / "page.html", name="odd \udfff")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "lone ? surrogate" in text


@given(st.text(st.characters(codec=None)))
def test_json_in_a_script_element_cannot_leave_it(text: str) -> None:
    found = script_json({text: [text]})
    assert not set("<>&\u2028\u2029") & set(found)
    assert json.loads(found) == {text: [text]}


def test_broken_runs_have_a_page(tmp_path: Path) -> None:
    folder = folders.run(tmp_path / "run")
    (folder / "measurements.json").write_text('{"rows": [{"name": "loss", "unit": "", "value": NaN}, 3]}')
    (folder / "documents.json").write_text("[")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    found = reader([record.read(folder)])
    assert "loss is left out" in found.text and "documents.json cannot be read" in found.text
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "status.json").write_text('{"state": "running"}')
    assert "ended without a word" in reader([record.read(empty)]).text
    assert "0 runs" in reader([]).text


def test_a_picture_must_be_a_png(runs: list[record.RunRecord]) -> None:
    with pytest.raises(RequestError, match="no PNG"):
        reader(runs, picture=b"GIF89a")
    image = reader(runs, picture=pareto.draw(runs), picture_caption='a "b" <c>').named("img")
    assert image[0]["alt"] == 'a "b" <c>' and (image[0]["src"] or "").startswith("data:image/png;base64,iVBOR")


def test_everything_to_press_has_a_name(runs: list[record.RunRecord]) -> None:
    text = page.render(table.build(runs), name="tried")
    found = Reader(text)
    assert found.named("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in (a for _, a in found.tags):
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name) is None or attributes[name] in ids
        target = attributes.get("href")
        assert target is None or target.removeprefix("#") in ids
    controls = re.findall(r"<label[^>]*>(.*?)</label>", text, re.DOTALL)
    assert sum("<select" in part or "<input" in part for part in controls) == len(found.named("select")) + len(
        found.named("input")
    )


def test_many_runs_stay_small(runs: list[record.RunRecord]) -> None:
    many = [record.read(runs[n % 2].folder, f"run-{n}") for n in range(40)] * 5
    text = page.render(table.build(many), name="many")
    assert len(text) < 5_000_000 and len(Reader(text).data["runs"]) == 200
