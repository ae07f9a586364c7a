"""Checkpoints whose pickle would run a command, or fill the memory, if pickle itself read it."""

import copyreg
import importlib
import os
import pickle
import runpy
import shutil
import subprocess
import timeit
from collections import OrderedDict

import pytest
import torch

from ldm.checkpoints.reading import read_checkpoint
from tests.checkpoints import Call, PersistentId, dumps, loads_unsafely, write_legacy, write_zip
from util.errors import UserError


def attacks(sentinel, script):
    """Pickles, each of which would make the sentinel file if it were read by pickle itself."""
    command = f"touch {sentinel}"
    code = f"__import__('os').system({command!r})"
    run = Call(os.system, command)
    rebuild = torch._utils._rebuild_tensor_v2
    size = b"X" + len(command).to_bytes(4, "little") + command.encode()
    getter = Call(getattr, Call(importlib.import_module, "os"), "system")
    values = {
        "top level": run,
        "in a state dict": {"state_dict": {"weight": run}},
        "nested": {"a": [({"b": (1, [run])},)]},
        "as a key": {run: 1},
        "in a set": {"a": {run}},
        "a tensor's storage": Call(rebuild, run, 0, (1,), (1,), False, OrderedDict()),
        "a tensor's size": Call(rebuild, PersistentId(("storage", 0, "0", "cpu", 1)), 0, run, (1,), False, {}),
        "a tensor's hooks": Call(rebuild, None, 0, (1,), (1,), False, run),
        "a parameter's data": Call(torch._utils._rebuild_parameter, run, True, OrderedDict()),
        "a tensor's own function": Call(torch._tensor._rebuild_from_type_v2, os.system, str, (command,), {}),
        "persistent id": PersistentId(run),
        "persistent id's type": PersistentId(("storage", run, "0", "cpu", 1)),
        "persistent id's key": PersistentId(("storage", torch.FloatStorage, run, "cpu", 1)),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "builtins.getattr": Call(getter, command),
        "builtins.map": Call(list, Call(map, os.system, [command])),
        "subprocess": Call(subprocess.call, ["touch", str(sentinel)]),
        "shutil": Call(shutil.copy, str(script), str(sentinel)),
        "runpy": Call(runpy.run_path, str(script)),
    }
    raw = {
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + size + b"\x85R.",
        "text opcodes": f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        "inst": f"(S'{command}'\nios\nsystem\n.".encode(),
        "obj": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "out of the memo": f"cos\nsystem\np0\n0g0\n(S'{command}'\ntR.".encode(),
        "python 2 builtins": f'c__builtin__\neval\n(S"{code}"\ntR.'.encode(),
        "python 2 commands": f"ccommands\ngetoutput\n(S'{command}'\ntR.".encode(),
        "posix": f"cposix\nsystem\n(S'{command}'\ntR.".encode(),
        "after the end of a dictionary": b"\x80\x02}q\x00(" + f"cos\nsystem\n(S'{command}'\ntR".encode() + b"K\x01u.",
    }
    pickled = {f"{name}, protocol {p}": dumps(value, p) for name, value in values.items() for p in (2, 4)}
    return pickled | raw


ATTACKS = sorted(attacks("sentinel", "script"))


@pytest.mark.parametrize("name", ATTACKS)
def test_what_would_run_a_command_is_refused_and_named(tmp_path, name):
    sentinel, script = tmp_path / "sentinel", tmp_path / "script.py"
    script.write_text(f"open({str(sentinel)!r}, 'w')")
    content = attacks(sentinel, script)[name]
    try:
        loads_unsafely(content)
    except Exception:
        assert sentinel.exists()  # what failed came after the command
    assert sentinel.exists(), "no attack at all"
    sentinel.unlink()
    ordinary = pickle.dumps({}, 2)
    files = [
        write_zip(tmp_path / "zip.ckpt", content, {"0": bytes(4)}),
        write_legacy(tmp_path / "content.ckpt", content, {"0": bytes(4)}),
        write_legacy(tmp_path / "system.ckpt", ordinary, {}, system=content),
        write_legacy(tmp_path / "keys.ckpt", ordinary, {}, keys=content),
    ]
    if content.startswith(b"\x80"):
        files.append(tmp_path / "bare.ckpt")
        files[-1].write_bytes(content)
    files.append(write_zip(tmp_path / "damaged.ckpt", b"\x80\x040" + content, {}))
    files.append(write_zip(tmp_path / "no storage.ckpt", content, {}))
    for path in files:
        with pytest.raises(
            UserError, match=r"refused: it names (os|posix|nt|builtins|subprocess|shutil|runpy|importlib|torch)\."
        ):
            read_checkpoint(path)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "name", ["sys.modules", "socket.socket", "importlib.util.find_spec", "nt.system", "builtins.open", "os.path.join"]
)
def test_other_globals_of_hostile_modules_are_refused_too(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    content = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(UserError, match=name):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))


def test_names_of_plain_builtin_types_are_not_hostile(tmp_path):
    content = {"kinds": [int, float, bool, str, dict, list, object, slice], "set": {1, 2}, "w": torch.ones(1)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(content, tmp_path / "a.ckpt", **options)
        assert list(read_checkpoint(tmp_path / "a.ckpt")) == ["w"]


def test_other_functions_are_inert(tmp_path):
    sentinel = tmp_path / "sentinel"
    call = Call(timeit.timeit, f"open({str(sentinel)!r}, 'w')", "pass", timeit.default_timer, 1)
    content = dumps({"a": call})
    loads_unsafely(content)
    assert sentinel.exists(), "no attack at all"
    sentinel.unlink()
    with pytest.raises(UserError, match="no named tensors"):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))
    assert not sentinel.exists()


def test_extension_codes_are_refused(tmp_path):
    sentinel = tmp_path / "sentinel"
    copyreg.add_extension("os", "system", 77)
    try:
        content = b"\x80\x02\x82\x4d" + f"(S'touch {sentinel}'\ntR.".encode()
        loads_unsafely(content)
        assert sentinel.exists(), "no attack at all"
        sentinel.unlink()
        with pytest.raises(UserError, match="more than tensors and plain values"):
            read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))
    finally:
        copyreg.remove_extension("os", "system", 77)
    assert not sentinel.exists()


@pytest.mark.parametrize("target", [torch._utils._rebuild_tensor_v2, OrderedDict, torch.FloatStorage, torch.Size])
def test_state_for_what_is_in_the_table_changes_nothing(tmp_path, target):
    before = dict(vars(target))
    name = f"c{target.__module__}\n{target.__qualname__}\n".encode()
    content = name + b"(N}S'__defaults__'\nI1\nstb."  # sets an attribute, in pickle itself
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))
    assert dict(vars(target)) == before


@pytest.mark.parametrize(("container", "kept"), [("list", b"](%se"), ("set", b"](%se"), ("dict", b"}(%su")])
def test_copies_of_copies_do_not_fill_the_memory(tmp_path, container, kept, monkeypatch):
    monkeypatch.setattr("ldm.checkpoints.pickles.MAX_OBJECTS", 1_000_000)
    items = b"".join(b"M" + number.to_bytes(2, "little") for number in range(10_000))
    program = kept % items + b"q\x00cbuiltins\n%s\nq\x01" % container.encode()
    copy = b"h\x01h\x00\x85R"  # what is kept, once more
    content = b"\x80\x02" + program + copy * 1000 + b"."
    with pytest.raises(UserError, match="more than 1,000,000 objects"):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))


@pytest.mark.parametrize("twice", [b"2", b"q\x00h\x00"])
def test_nested_keys_do_not_take_for_ever(tmp_path, twice):
    tower = b"(t" + (twice + b"\x86") * 200  # a tuple of twice a tuple of twice ...: 2^200 leaves to hash
    content = b"\x80\x02}" + tower + b"K\x01s."
    with pytest.raises(UserError, match="more than 10,000,000 objects"):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))


def test_a_key_nested_a_hundred_thousand_times_does_not_exhaust_the_stack(tmp_path):
    content = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
    with pytest.raises(UserError, match="more than 10,000,000 objects"):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))


def test_room_for_nothing_is_not_given(tmp_path):
    content = dumps({"a": Call(bytearray, 10**10)})
    with pytest.raises(UserError, match="reserves memory for bytes"):
        read_checkpoint(write_zip(tmp_path / "a.ckpt", content, {}))
