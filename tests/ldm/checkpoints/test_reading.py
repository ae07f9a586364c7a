"""Checkpoint files of every format, sound and damaged."""

import logging
import os
import re
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ldm.checkpoints.reading import read_checkpoint, write_checkpoint
from tests.checkpoints import Call, PersistentId, dumps, write_legacy, write_zip
from util.errors import UserError

LEGACY = {"_use_new_zipfile_serialization": False}
FORMATS = {"zip": {}, "legacy": LEGACY}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    return {
        "weight": whole,
        "transposed": torch.randn(3, 5).t(),
        "slice": whole[2:4, 1:],
        "parameter": torch.nn.Parameter(torch.randn(7)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2).double(),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "truth": torch.tensor([True, False]),
    }


def assert_read(path, tensors):
    stored = read_checkpoint(path)
    assert list(stored) == list(tensors)
    for name, want in tensors.items():
        got = stored[name].read()
        assert (got.dtype, stored[name].shape) == (want.dtype, tuple(want.shape))
        assert torch.equal(got, want), name


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_what_torch_saves_is_read(tmp_path, tensors, options, wrap):
    state = OrderedDict(tensors)
    state._metadata = {"": {"version": 1}}
    torch.save(wrap(state), tmp_path / "a.ckpt", **options)
    assert_read(tmp_path / "a.ckpt", tensors)


def test_what_safetensors_saves_is_read(tmp_path, tensors):
    tensors = {name: tensors[name].detach().clone().contiguous() for name in sorted(tensors)}
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_checkpoint(tmp_path / "a.safetensors")
    assert sorted(stored) == sorted(tensors)
    assert all(torch.equal(stored[name].read(), want) for name, want in tensors.items())


def test_a_length_that_begins_as_a_pickle_does_is_one(tmp_path):
    """A safetensors file begins with its header's length, which may well end in 0x80."""
    path, lengths = tmp_path / "a.safetensors", set()
    for padding in range(0, 256, 8):
        save_file({"w": torch.arange(3.0)}, path, metadata={"note": "x" * padding})
        lengths.add(path.read_bytes()[0])
        assert torch.equal(read_checkpoint(path)["w"].read(), torch.arange(3.0))
    assert 0x80 in lengths


def test_the_content_decides_and_not_the_name(tmp_path, tensors):
    torch.save(tensors, tmp_path / "a.safetensors")
    assert_read(tmp_path / "a.safetensors", tensors)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_a_module_that_is_saved_by_its_parameters_own_attributes(tmp_path, options):
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.origin = "a training framework"  # torch saves such a tensor by another function
    torch.save({"weight": parameter}, tmp_path / "a.ckpt", **options)
    assert_read(tmp_path / "a.ckpt", {"weight": torch.arange(3.0)})


def test_a_later_pickle_protocol_is_refused_with_the_remedy(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.ckpt", pickle_protocol=4)
    with pytest.raises(UserError, match=r"protocol 4, .*torch\.save\(torch\.load\(FILE"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_file_that_cannot_be_mapped_may_be_released_all_the_same(tmp_path):
    want = torch.randn(100_000)
    torch.save({"weight": want}, tmp_path / "a.ckpt", **LEGACY)
    stored = read_checkpoint(tmp_path / "a.ckpt")["weight"]
    stored.release()
    assert torch.equal(stored.read(), want)


class Unknown:
    """Stands for a class of a training framework: the module that it says it is in exists only while it is saved."""

    def __init__(self):
        self.best = 3

    def __eq__(self, other):
        raise AssertionError("nothing of it may run")

    def __hash__(self):
        return 1


class AttributeDict(dict):
    """Stands for a framework's own dictionary."""


@pytest.fixture
def framework(monkeypatch):
    module = types.ModuleType("no_such_framework.callbacks")
    for cls in (Unknown, AttributeDict):
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", module.__name__)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "no_such_framework", types.ModuleType("no_such_framework"))
        patch.setitem(sys.modules, module.__name__, module)
        yield patch


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_classes_that_nobody_has_become_placeholders_and_are_listed(tmp_path, framework, caplog, options):
    content = {
        "callbacks": {Unknown: {"best": np.float64(0.5)}, Unknown(): [Unknown()], ("a", Unknown): {Unknown()}},
        "counts": defaultdict(list, {"a": [1]}),
        "hyper_parameters": AttributeDict(lr=1e-4, sizes={1, 2}),
        "array": np.arange(3),
        "sizes": torch.Size([1, 2]),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "state_dict": {"weight": torch.ones(2), "note": Unknown()},
    }
    torch.save(content, tmp_path / "a.ckpt", **options)
    framework.undo()
    with caplog.at_level(logging.INFO, "resample"):
        assert_read(tmp_path / "a.ckpt", {"weight": torch.ones(2)})
    (line,) = caplog.messages
    assert "no_such_framework.callbacks.Unknown" in line


STORAGE = PersistentId(("storage", torch.FloatStorage, "0", "cpu", 4))


def tensor(storage=STORAGE, offset=0, shape=(4,), stride=(1,)):
    return dumps({"w": Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())})


@pytest.mark.parametrize(
    "content",
    [
        tensor(shape=(5,)),
        tensor(offset=1),
        tensor(offset=-1),
        tensor(shape=(2, 2), stride=(4, 1)),
        tensor(stride=(-1,)),
        tensor(shape=(10**9,), stride=(0,)),
        tensor(shape=(10**30,)),
        tensor(shape=("a",)),
        tensor(storage=3),
        tensor(storage=PersistentId(("storage", torch.FloatStorage, "1", "cpu", 4))),
        tensor(storage=PersistentId(("storage", torch.FloatStorage, "0", "cpu", 10**12))),
        tensor(storage=PersistentId(("storage", torch.FloatStorage, "0", "cpu", -4))),
        tensor(storage=PersistentId(("storage", torch.FloatStorage, "0/../../x", "cpu", 4))),
        tensor(storage=PersistentId("storage")),
        b"\x80\x02N.",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}0R.",
        b"",
    ],
)
def test_tensors_that_are_none_are_refused(tmp_path, content):
    for path in (
        write_zip(tmp_path / "a.ckpt", content, {"0": bytes(16)}),
        write_legacy(tmp_path / "b.ckpt", content, {"0": bytes(16)}),
    ):
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"weights, honestly\n" * 10,
        b"<!DOCTYPE html><html>",
        b"PK\x03\x04" + bytes(100),
        (2**62).to_bytes(8, "little") + b"{",
        (2**40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}      ',
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(UserError, match=r"torch\.save did not write"):
        read_checkpoint(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor())
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="Is a directory"):
        read_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    state = {"state_dict": {"a": torch.randn(4, 4), "b": torch.randn(3).half()}, "epoch": 1}
    torch.save(state, folder / "zip")
    torch.save(state, folder / "legacy", **LEGACY)
    save_file(state["state_dict"], folder / "safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_all(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "system", lambda command: pytest.fail(f"it ran {command}"))
        try:
            for stored in read_checkpoint(path).values():
                stored.read().sum()
        except UserError:
            pass


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(tmp_path, whole_files, kind, data):
    content = bytearray(whole_files[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.ckpt"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    read_all(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_released_pages_are_no_longer_held_and_can_be_read_again(tmp_path, kind):
    def file_megabytes():
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    tensors = {"a": torch.randn(10_000_000), "b": torch.randn(1000)}
    path = tmp_path / kind
    (save_file if kind == "safetensors" else torch.save)(tensors, path)
    stored = read_checkpoint(path)
    before = file_megabytes()
    read = {name: entry.read() for name, entry in stored.items()}
    assert torch.equal(read["a"], tensors["a"])
    assert file_megabytes() - before > 30
    stored["a"].release()
    assert file_megabytes() - before < 8
    assert all(torch.equal(read[name], want) for name, want in tensors.items())


def test_a_written_file_is_whole_and_replaces_the_old(tmp_path, tensors):
    tensors = {name: tensors[name].detach().clone().contiguous() for name in sorted(tensors)}
    path = tmp_path / "new" / "a.safetensors"
    write_checkpoint(path, {"old": torch.ones(1)}, {})
    write_checkpoint(path, tensors, {"weights": "raw"})
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    stored = read_checkpoint(path)
    assert all(torch.equal(stored[name].read(), want) for name, want in tensors.items())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        write_checkpoint(tmp_path / "a" / "b.safetensors", {"w": torch.ones(1)}, {})
    (tmp_path / "c.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_checkpoint(tmp_path / "c.safetensors", {"w": torch.ones(1)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c.safetensors"]
