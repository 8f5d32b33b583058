"""Receipts from whole and broken run folders: card, JSON, picture, model card."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hayless.core.errors import RequestError
from hayless.core.measurement import Measurement
from hayless.recipe.figures import percent, title, written
from hayless.recipe.receipt import Receipt, measured_cell, predicted_cell
from hayless.recipe.receipt_card import with_metadata, with_section
from hayless.recipe.receipt_picture import draw, reach, ticks
from tests.study import folders

KMEANS = {"method": "kmeans", "bits": 4}


def shown(receipt: Receipt, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=120).print(receipt.card())
    file.flush()
    return raw.getvalue().decode(encoding)


def test_a_whole_run(tmp_path: Path) -> None:
    receipt = Receipt.from_run(folders.run(tmp_path / "small", size=4_000_000, apply=KMEANS))
    assert (receipt.name, receipt.state, receipt.problems) == ("small", "done", ())
    assert receipt.changes == ("kmeans bits=4", "train lm adamw 1,000,000 tokens")
    assert receipt.measured("file_bytes") == 4_000_000 and receipt.measured("nothing") is None
    assert [row.name for row in receipt.rows][:3] == ["bits_per_byte", "loss", "train_peak_bytes"]
    text = shown(receipt)
    assert "20.8 MB (−13.3 %)" in text and "24.0 MB" in text and "○" in text and "●" in text and "◉" in text
    plain = shown(receipt.model_copy(update={"rows": receipt.rows[4:5]}), "ascii")
    assert "4.00 MB" in plain and "@" in plain


def test_json_reads_back(tmp_path: Path) -> None:
    receipt = Receipt.from_run(folders.run(tmp_path / "small"))
    content = json.loads(json.dumps(receipt.to_json(), allow_nan=False))
    peak = next(row for row in content["rows"] if row["name"] == "train_peak_bytes")
    assert peak["error"] == pytest.approx(5.2 / 6 - 1)
    for row in content["rows"]:
        del row["error"]
    assert Receipt.model_validate(content) == receipt


def test_published_figures_stand_beside(tmp_path: Path) -> None:
    receipt = Receipt.from_run(folders.run(tmp_path / "small"))
    both = receipt.with_published({"file_bytes": 3.9e6, "accuracy": 0.5}, "Table 2")
    size, other = both.figure("file_bytes"), both.figure("accuracy")
    assert size and size.published == 3.9e6 and size.value == 4_000_000
    assert other and other.value is None and other.published == 0.5 and other.note == "published: Table 2"
    assert "published" in shown(both) and "published" not in shown(receipt)
    assert receipt.with_published({}) is receipt


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("measurements.json", '{"rows": [{"name": "loss", "unit": "nats/token", "value": NaN}]}', "loss is left out"),
        ("measurements.json", '{"rows": [{"name": "loss", "unit": "x", "value": 1, "colour": 2}]}', "loss is left out"),
        ("measurements.json", '{"rows": [7]}', "no object"),
        ("measurements.json", '{"machine": {"cores": 2}, "rows": []}', "machine"),
        ("measurements.json", '{"rows": [', "measurements.json cannot be read"),
        ("measurements.json", "[]", "holds no JSON object"),
        ("measurements.json", None, "nothing was measured"),
        ("status.json", "", "status.json cannot be read"),
        ("recipe.yaml", "a: [1", "recipe.yaml cannot be read"),
        ("recipe.yaml", None, "recipe.yaml is missing"),
    ],
)
def test_what_cannot_be_read_is_said_and_nothing_is_made_up(
    tmp_path: Path, file: str, content: str | None, problem: str
) -> None:
    folder = folders.run(tmp_path / "broken")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content, encoding="utf-8")
    receipt = Receipt.from_run(folder)
    assert any(problem in found for found in receipt.problems), receipt.problems
    assert receipt.measured("loss") is None or file != "measurements.json"
    receipt.write(folder)
    assert json.loads((folder / "receipt.json").read_text(encoding="utf-8"))["problems"]
    assert problem.split()[0] in shown(receipt)


def test_no_run_is_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        Receipt.from_run(tmp_path / "none")
    with pytest.raises(RequestError, match="holds no run"):
        Receipt.from_run(tmp_path)


def test_a_failed_run_shows_why(tmp_path: Path) -> None:
    receipt = Receipt.from_run(folders.run(tmp_path / "bad", state="failed", reason="[red]The loss is nan[/red]"))
    assert "Failed: [red]The loss is nan[/red]" in shown(receipt) and "Nothing was measured" in shown(receipt)


def test_the_picture_is_a_function_of_the_receipt(tmp_path: Path) -> None:
    receipt = Receipt.from_run(folders.run(tmp_path / "small", "<b>$x$"[:3] + "odd", apply=KMEANS))
    svg = draw(receipt, "svg")
    assert svg == draw(receipt, "svg")
    texts = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"predicted", "measured", "published", "Training peak", "24.0 MB", "20.8 MB"} <= set(texts)
    assert draw(receipt, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e300, None])
@pytest.mark.parametrize("predicted", [0.0, -1.0, 1e300, None])
def test_odd_figures_are_drawn_and_written(value: float | None, predicted: float | None) -> None:
    row = Measurement(name="joules_per_token", unit="J", value=value, predicted=predicted, low=value, high=value)
    receipt = Receipt(name="x" * 500 + "\n\x00", rows=(row,))
    assert draw(receipt, "png") and shown(receipt) and receipt.markdown()


def test_the_model_card_keeps_what_stands_in_it(tmp_path: Path) -> None:
    folder = folders.run(tmp_path / "small")
    (folder / "model").mkdir()
    receipt = Receipt.from_run(folder)
    receipt.write(folder)
    card = folder / "model" / "README.md"
    first = card.read_text(encoding="utf-8")
    assert first.startswith("---\nlibrary_name: transformers\n") and "| File size | 4.00 MB | 4.00 MB |" in first
    assert (folder / "model" / "receipt.png").exists() and "](receipt.png)" in first
    receipt.write(folder)
    assert card.read_text(encoding="utf-8") == first
    own = with_section("---\nlicense: mit\n---\n# Mine\n\nWords.\n", receipt.markdown(), "small")
    assert own.startswith("---\nlicense: mit\n---\n# Mine\n\nWords.\n\n<!-- hayless receipt -->")
    again = with_section(own + "\nAfter.\n", "## Receipt\n\nnew\n", "small")
    assert "new" in again and "File size" not in again and "Words." in again and again.endswith("After.\n")


def test_model_card_is_read_by_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, content in (("refs/main", "abc"), ("snapshots/abc/config.json", "{}")):
        cached = tmp_path / "hub" / "models--someone--small-model" / name
        cached.parent.mkdir(parents=True)
        cached.write_text(content)

    folder = folders.run(tmp_path / "small", apply={"method": "lora", "rank": 8})
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("path: models/small", "path: someone/small-model"))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "hayless"}')
    Receipt.from_run(folder).write(folder)
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.library_name == "hayless" and card.data.tags == ["hayless", "lora"]
    assert card.data.base_model == "someone/small-model" and card.text.strip().startswith("# small")
    (folder / "model" / "adapter_config.json").write_text("{}")
    (folder / "model" / "README.md").unlink()
    recipe.write_text(recipe.read_text().replace("someone/small-model", "models/small"))
    Receipt.from_run(folder).write(folder)
    data = ModelCard.load(folder / "model" / "README.md").data
    assert data.library_name == "peft" and data.base_model is None


def test_what_people_wrote_in_the_header_stays() -> None:
    own = "---\nlicense: mit\ntags:\n- mine\nlibrary_name: peft\nodd: [1, 2]\n---\n# Mine\n\nWords.\n"
    found = with_metadata(own, library="transformers", tags=["kmeans"], base_model="a/b")
    assert with_metadata(found, library="transformers", tags=["kmeans"]) == found and found.endswith(
        "# Mine\n\nWords.\n"
    )
    from huggingface_hub import ModelCard

    data = ModelCard(found).data.to_dict()
    expected = {"license": "mit", "tags": ["mine", "hayless", "kmeans"], "library_name": "peft", "odd": [1, 2]}
    assert data == expected | {"base_model": "a/b"}
    for broken in ("---\nlicense: [\n---\nx\n", "---\n- a\n---\nx\n"):
        assert with_metadata(broken, library="transformers") == broken


def test_markdown_takes_no_markup_from_names() -> None:
    row = Measurement(name="a|b<script>", unit="u`", value=1.0)
    text = Receipt(name="![x](http://e)", rows=(row,), changes=("<img src=x>",)).markdown(picture="receipt.png")
    assert "<script>" not in text and "<img" not in text and "a\\|b" in text.lower() and "![x]" not in text


def test_a_full_disk_leaves_the_old_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.run(tmp_path / "small")
    Receipt.from_run(folder).write(folder)
    before = (folder / "receipt.json").read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="No space left"):
        Receipt.from_run(folder).with_published({"loss": 1.0}).write(folder)
    assert (folder / "receipt.json").read_bytes() == before
    assert not list(folder.glob(".*.partial"))
    shutil.rmtree(folder)


def test_how_figures_are_written() -> None:
    assert written("file_bytes", 2_345_678) == "2.35 MB"
    assert written("first_token_seconds", 0.0123) == "12.3 ms"
    assert written("trainable_parameters", 1_234_567) == "1.23M"
    assert written("ms_per_token", 4.5612) == "4.561 ms/token"
    assert written("train_tokens_per_second", 12345.6) == "12,346 tokens/s"
    assert written("other", 3.0, "furlongs") == "3.000 furlongs" and written("loss", None) == ""
    assert title("some_new_figure") == "Some new figure"
    assert [percent(x) for x in (0.0312, -0.2, 0.0, 2.5, 0.0002)] == ["+3.1 %", "−20.0 %", "±0 %", "×3.5", "+0.020 %"]
    spread = Measurement(name="ms_per_token", unit="ms", value=4.0, low=3.5, high=4.7, predicted=5.0)
    assert (measured_cell(spread), predicted_cell(spread)) == ("4.000 ± 0.600 ms/token", "5.000 ms/token (+25.0 %)")


@given(st.floats(1.01, 200))
def test_ticks_hold_one_and_stay_on_the_scale(limit: float) -> None:
    found = ticks(limit)
    assert 1.0 in found and all(1 / limit <= tick <= limit for tick in found)


def test_the_scale_reaches_every_dot() -> None:
    rows = [Measurement(name="loss", unit="", value=1.0, predicted=0.2), Measurement(name="x", unit="", value=0.0)]
    assert reach(rows) == pytest.approx(5 * 1.05) and reach([]) == pytest.approx(1.155)
