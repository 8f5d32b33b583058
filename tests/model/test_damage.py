"""Folders that are not whole, or not one model, are refused with words; a save that fails leaves what was there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.core.errors import FileDamaged, HaylessError, NotSupported, RequestError, WorkError
from hayless.core.registry import configure
from hayless.model.checksums import NAME
from hayless.model.load import check_tokenizer, load_model, load_tokenizer
from hayless.model.save import save_model
from hayless.model.tensors import INDEX, WEIGHTS
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import lora_of
from tests.model.saving import check_same, edit_config, edit_tensors, tokenizer

KINDS = ("plain", "sharded", "packed", "adapter")
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of each kind."""
    root = tmp_path_factory.mktemp("originals")
    save_model(tiny.model("llama"), root / "plain", tokenizer=tokenizer())
    save_model(tiny.model("llama"), root / "sharded", shard_bytes=20_000)
    packed = tiny.model("llama")
    apply(packed, [configure("kmeans", bits=2, iterations=2)])
    save_model(packed, root / "packed")
    apply(packed, [lora_of("llama")])
    save_model(packed, root / "adapter", tokenizer=tokenizer())
    return root


@pytest.fixture
def folders(originals: Path, tmp_path: Path) -> Path:
    """Copies of them that may be damaged."""
    shutil.copytree(originals, tmp_path / "copies")
    return tmp_path / "copies"


def refused(folder: Path, error: type[HaylessError], words: str) -> None:
    """Loading fails so, and says where."""
    with pytest.raises(error, match=words) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_counts(kind: str, folders: Path) -> None:
    folder = folders / kind
    names = json.loads((folder / NAME).read_text())["files"]
    assert set(names) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {NAME}
    for name in names:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused(folder, FileDamaged, "checksum differs")
        path.unlink()
        refused(folder, FileDamaged, "is missing")
        path.write_bytes(content)
    load_model(folder)


@pytest.mark.parametrize(
    "file", ["plain/model.safetensors", "packed/model.safetensors", "adapter/adapter_model.safetensors"]
)
@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated(file: str, kept: int, folders: Path) -> None:
    path = folders / file
    (path.parent / NAME).unlink()
    path.write_bytes(path.read_bytes()[:kept])
    refused(path.parent, FileDamaged, "not a whole safetensors file")


def test_shards(folders: Path) -> None:
    folder = folders / "sharded"
    (folder / NAME).unlink()
    index = json.loads((folder / INDEX).read_text())
    first, last = min(index["weight_map"].values()), max(index["weight_map"].values())
    content = (folder / last).read_bytes()
    (folder / last).write_bytes(content[:-9])
    refused(folder, FileDamaged, "not a whole safetensors file")
    (folder / last).unlink()
    refused(folder, FileDamaged, "is missing")
    (folder / last).write_bytes((folder / first).read_bytes())
    refused(folder, FileDamaged, "which the index says it holds")
    for place in ("../plain/model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", ".."):
        wrong = {**index["weight_map"], Q: place}
        (folder / INDEX).write_text(json.dumps({"weight_map": wrong}))
        refused(folder, FileDamaged, "not a safetensors file of this folder")
    for content in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        (folder / INDEX).write_text(content)
        refused(folder, FileDamaged, "weight_map|valid JSON")


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_tensors_that_do_not_fit(kind: str, folders: Path) -> None:
    folder = folders / kind
    norm = "model.layers.1.input_layernorm.weight"

    def changed(change: Callable[[dict[str, Any]], Any], words: str) -> None:
        original = (folder / WEIGHTS).read_bytes()
        edit_tensors(folder, change)
        refused(folder, FileDamaged, words)
        (folder / WEIGHTS).write_bytes(original)

    changed(lambda tensors: tensors.pop(norm), rf"lacks {norm}")
    changed(lambda tensors: tensors.update({"model.more": torch.ones(2)}), r"has, beside the model's, model\.more")
    changed(lambda tensors: tensors.update({norm: torch.ones(31)}), rf"{norm} is \(31,\)")
    if kind == "packed":
        codes = "model.layers.0.mlp.up_proj.weight_codes"
        changed(lambda tensors: tensors.update({codes: tensors[codes].float()}), "of torch.float32")


def test_adapters_that_do_not_fit(folders: Path) -> None:
    folder = folders / "adapter"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    file = "adapter_model.safetensors"
    original = (folder / file).read_bytes()
    for change, words in (
        (lambda tensors: tensors.pop(name), "lacks"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "unknown"),
        (lambda tensors: tensors.update({name: torch.ones(1, 32)}), r"\(1, 32\)"),
    ):
        edit_tensors(folder, change, file)
        with pytest.raises(FileDamaged, match=words):
            load_model(folder)
        (folder / file).write_bytes(original)
    (folder / file).rename(folder / "adapter_model.bin")
    refused(folder, RequestError, "no adapter_model.safetensors")
    (folder / "adapter_model.bin").rename(folder / file)
    edit_config(folder, name="adapter_config.json", peft_type="LOHA")
    with pytest.raises(NotSupported, match=r"'LOHA'.*LORA"):
        load_model(folder)
    shutil.rmtree(folder / "base")
    edit_config(folder, name="adapter_config.json", peft_type="LORA", base_model_name_or_path=None)
    refused(folder, RequestError, "names no base")
    edit_config(folder, name="adapter_config.json", base_model_name_or_path="./nowhere")
    refused(folder, RequestError, r"The base .* is not there")
    edit_config(folder, name="adapter_config.json", base_model_name_or_path="../plain")
    load_model(folder)
    (folder / "tokenizer.json").unlink()
    for circle in (".", "../adapter", str(folder)):
        edit_config(folder, name="adapter_config.json", base_model_name_or_path=circle)
        refused(folder, NotSupported, "is an adapter itself")
        with pytest.raises(NotSupported, match="is an adapter itself"):
            load_tokenizer(folder)
    (folder / "adapter_config.json").write_text("[]")
    refused(folder, FileDamaged, "not an object")


def test_configs_that_do_not_fit(folders: Path) -> None:
    plain = folders / "plain"
    original = (plain / "config.json").read_text()
    for field in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads"):
        edit_config(plain, remove=(field,))
        with pytest.raises(RequestError, match=f"no {field}"):
            load_model(plain)
        (plain / "config.json").write_text(original)
    for fields, error, words in (
        ({"hidden_size": "32"}, RequestError, "hidden_size = '32'"),
        ({"num_attention_heads": 5}, RequestError, "num_"),
        ({"num_hidden_layers": 3}, FileDamaged, r"lacks model\.layers\.2"),
        ({"num_hidden_layers": 1}, FileDamaged, r"has, beside the model's, model\.layers\.1"),
        ({"vocab_size": 97}, FileDamaged, r"is \(96, 32\), not \(97, 32\)"),
        ({"tie_word_embeddings": True}, FileDamaged, "two that differ"),
        ({"model_type": "llamma"}, NotSupported, "Nearest: 'llama'"),
        ({"quantization_config": {"quant_method": "gptq"}}, NotSupported, "gptq"),
        ({"hayless": {"methods": [{"method": "kmean"}]}}, RequestError, "Did you mean 'kmeans'"),
        ({"hayless": {"methods": [{"method": "kmeans", "bits": 99}]}}, RequestError, "kmeans.bits"),
        ({"hayless": {"methods": [{}]}}, FileDamaged, "no record"),
        ({"hayless": ["kmeans"]}, FileDamaged, "no record"),
    ):
        edit_config(plain, **fields)
        with pytest.raises(error, match=words):
            load_model(plain)
        (plain / "config.json").write_text(original)
    for content, words in (("{", "not valid JSON"), ("[]", "list, not an object"), ("\xff", "JSON")):
        (plain / "config.json").write_text(content, encoding="latin-1")
        refused(plain, FileDamaged, words)
    (plain / "config.json").unlink()
    refused(plain, RequestError, "no config.json")
    edit_config(folders / "packed", remove=("hayless",))
    refused(folders / "packed", RequestError, "no record of methods")


def test_checksums_cannot_point_elsewhere(folders: Path) -> None:
    for name in ("../sharded/config.json", "/etc/passwd"):
        (folders / "plain" / NAME).write_text(json.dumps({"algorithm": "sha256", "files": {name: "0"}}))
        refused(folders / "plain", FileDamaged, "not in the folder")
    (folders / "plain" / NAME).write_text('{"algorithm": "crc", "files": {}}')
    refused(folders / "plain", FileDamaged, "SHA-256")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_never_read(name: str, folders: Path) -> None:
    folder = folders / "plain"
    (folder / NAME).unlink()
    (folder / WEIGHTS).unlink()
    refused(folder, RequestError, "no model.safetensors")
    (folder / name).write_bytes(b"\x80\x04.")
    refused(folder, RequestError, "pickle")


def test_tokenizers_that_do_not_fit(folders: Path) -> None:
    model = load_model(folders / "plain")
    check_tokenizer(model, load_tokenizer(folders / "plain"))
    # The model may have more embeddings than the tokenizer has entries.
    check_tokenizer(model, tokenizer(90))
    with pytest.raises(RequestError, match=r"up to 96, the model has 96"):
        check_tokenizer(model, tokenizer(97))
    with pytest.raises(RequestError, match="has no tokenizer"):
        load_tokenizer(folders / "sharded")
    assert len(load_tokenizer(folders / "adapter")) == 96
    (folders / "plain" / "tokenizer.json").write_text("{}")
    with pytest.raises(FileDamaged, match="cannot be read"):
        load_tokenizer(folders / "plain")


def test_an_adapter_takes_its_bases_tokenizer(folders: Path) -> None:
    folder = folders / "adapter"
    (folder / "tokenizer.json").rename(folder / "base" / "tokenizer.json")
    (folder / "tokenizer_config.json").rename(folder / "base" / "tokenizer_config.json")
    assert len(load_tokenizer(folder)) == 96


@contextlib.contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """The system refuses to write files larger than this, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("limit", [200, 1_500, 30_000])
def test_a_disk_that_fills(limit: int, tmp_path: Path) -> None:
    """At 200 bytes no config fits, at 1,500 no tokenizer (and no weights), at 30,000 no weights."""
    save_model(tiny.model("llama"), tmp_path / "model", tokenizer=tokenizer())
    other = tiny.model("llama", seed=1)
    with largest_file(limit), pytest.raises(WorkError, match="could not be written"):
        save_model(other, tmp_path / "model", tokenizer=tokenizer())
    with largest_file(limit), pytest.raises(WorkError, match="could not be written"):
        save_model(other, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    check_same(tiny.model("llama"), load_model(tmp_path / "model"))


def test_a_tokenizer_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Exception("No space left on device (os error 28)")

    found = tokenizer()
    monkeypatch.setattr(type(found), "save_pretrained", fail)
    with pytest.raises(WorkError, match="No space left"):
        save_model(tiny.model("llama"), tmp_path / "model", tokenizer=found)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked to be killed")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 before every sync and every rename of a save: the folder is the old model or the new one, whole."""
    folder = tmp_path / "model"
    old, new = tiny.model("llama"), tiny.model("llama", seed=1)
    outcomes = []
    for moment in range(100):
        save_model(old, folder)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                _kill_at(moment)
                save_model(new, folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        back = load_model(folder)
        expected = old if torch.equal(back.lm_head.weight, old.lm_head.weight) else new
        check_same(expected, back)
        outcomes.append(expected is new)
        if not os.WIFSIGNALED(status):
            break
    assert not [path for path in tmp_path.iterdir() if path != folder]
    assert len(outcomes) > 10 and outcomes == sorted(outcomes) and outcomes[-1] and not outcomes[0]


def _kill_at(moment: int) -> None:
    """End this process at the given one of the calls by which a save reaches the disk."""
    calls = iter(range(1000))

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return run

    os.fsync = watched(os.fsync)
    Path.rename = watched(Path.rename)  # type: ignore[method-assign]
    Path.replace = watched(Path.replace)  # type: ignore[method-assign]
    shutil.rmtree = watched(shutil.rmtree)  # type: ignore[assignment]
