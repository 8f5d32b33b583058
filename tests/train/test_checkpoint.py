"""Checkpoints survive truncation, altered bytes, a full disk and a kill; bad ones are said and passed over."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors import SafetensorError

from hayless.core import atomic
from hayless.core.errors import FileDamaged, WorkError
from hayless.train import checkpoint
from hayless.train.checkpoint import Checkpoints, Snapshot


def content(value: float) -> Snapshot:
    tensors = {
        "weights": {"a.b": torch.full((3, 2), value), "c": torch.full((1,), value, dtype=torch.bfloat16)},
        "buffers": {},
        "random": {"torch": torch.arange(5, dtype=torch.uint8)},
    }
    return Snapshot(tensors, {"step": int(value), "loss": 0.1 + 0.2})


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path / "checkpoints", 2, said.append)


def test_comes_back_bit_for_bit(checkpoints):
    checkpoints.save(7, content(7.0), None)
    step, found = checkpoints.latest()
    assert step == 7 and found.state == {"step": 7, "loss": 0.1 + 0.2}
    for group, tensors in content(7.0).tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[group][name], tensor)
            assert found.tensors[group][name].dtype == tensor.dtype


def test_holds_only_safetensors_and_json(checkpoints):
    path = checkpoints.save(7, content(7.0), None)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_keeps_the_last_two_and_the_best(checkpoints):
    for step in range(1, 7):
        checkpoints.save(step, content(step), best=2 if step >= 2 else None)
    assert checkpoints.steps() == [2, 5, 6]


def test_none_is_none(checkpoints):
    assert checkpoints.latest() is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def alter(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["weights-1.safetensors", "random-1.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("harm", [truncate, alter, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_is_said_and_the_one_before_used(checkpoints, said, file, harm):
    for step in (1, 2):
        checkpoints.save(step, content(step), None)
    harm(checkpoints.path(2) / file)
    step, found = checkpoints.latest()
    assert step == 1 and found.state["step"] == 1
    assert len(said) == 1 and "step-00000002" in said[0] and "damaged" in said[0]


def test_all_damaged_is_an_error(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, content(step), None)
        truncate(checkpoints.path(step) / "weights-1.safetensors")
    with pytest.raises(FileDamaged, match="Every checkpoint"):
        checkpoints.latest()


def test_a_damaged_later_one_does_not_push_good_ones_out(checkpoints, said):
    for step in (10, 20, 30):
        checkpoints.save(step, content(step), None)
    truncate(checkpoints.path(30) / "state.json")
    assert checkpoints.latest()[0] == 20
    checkpoints.save(25, content(25), None)
    assert checkpoints.steps() == [20, 25]


@pytest.mark.parametrize("where", ["tensors", "json", "rename"])
def test_a_full_disk_leaves_earlier_ones_untouched(checkpoints, monkeypatch, where):
    checkpoints.save(1, content(1), None)
    before = {file.name: file.read_bytes() for file in checkpoints.path(1).iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(error):
        def raising(*arguments, **options):
            raise error

        return raising

    if where == "tensors":
        monkeypatch.setattr("hayless.train.checkpoint.save_file", fail(SafetensorError("I/O error: no space left")))
    elif where == "json":
        monkeypatch.setattr(os, "fsync", fail(full))
    else:
        monkeypatch.setattr(atomic, "_sync_tree", fail(full))
    for step in (2, 3, 4):
        with pytest.raises(WorkError, match="could not be written"):
            checkpoints.save(step, content(step), None)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in checkpoints.path(1).iterdir()} == before
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_leftovers_of_a_kill_are_swept(checkpoints):
    checkpoints.save(1, content(1), None)
    for left in (".step-00000002.12345678.partial", ".step-00000000.deleted"):
        shutil.copytree(checkpoints.path(1), checkpoints.folder / left)
    # Killed between the two renames of a replacement: only the old one is there, under its other name.
    checkpoints.path(1).rename(checkpoints.folder / ".step-00000001.old")
    assert checkpoints.latest()[0] == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_name_that_is_a_path_is_never_opened(checkpoints, tmp_path):
    path = checkpoints.save(1, content(1), None)
    shutil.copy(path / "weights-1.safetensors", tmp_path / "other-1.safetensors")
    sums = json.loads((path / "checksums.json").read_text())
    sums["../../other-1.safetensors"] = sums["weights-1.safetensors"]
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(FileDamaged, match="missing"):
        checkpoints.load(1)


def test_a_file_taken_off_the_list_is_noticed(checkpoints):
    path = checkpoints.save(1, content(1), None)
    sums = json.loads((path / "checksums.json").read_text())
    del sums["weights-1.safetensors"]
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(FileDamaged, match="not listed"):
        checkpoints.load(1)


OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


def _die_at(number):
    """Make the `number`-th change of the file system from now on the last thing that does not happen."""
    left = [number]

    def counted(original):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return original(*arguments, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    checkpoint.save_file = counted(checkpoint.save_file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("saved", [3, 2])
def test_killed_before_any_operation_of_a_save_the_old_or_the_new_one_is_whole(tmp_path, said, saved):
    """A process that ends without cleaning up, at every operation in turn; `saved` 2 replaces a checkpoint."""
    for number in range(200):
        checkpoints = Checkpoints(tmp_path / str(number), 1, said.append)
        checkpoints.save(1, content(1), best=1)
        checkpoints.save(2, content(2), best=1)
        child = os.fork()
        if not child:
            _die_at(number)
            checkpoints.save(saved, content(10.0), best=1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step, found = checkpoints.latest()
        value = float(found.tensors["weights"]["c"])
        assert (step, value) in {(2, 2.0), (saved, 10.0)}
        assert not said and 1 in checkpoints.steps()
        checkpoints.save(4, content(4), best=1)
        assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["step-00000001", "step-00000004"]
        if code == 0:
            assert value == 10.0 and number > 20
            return
        assert code == 9
    raise AssertionError("saving never ended")
