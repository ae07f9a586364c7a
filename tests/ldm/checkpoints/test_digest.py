"""A checkpoint's SHA-256, and the checksums that are verified with it."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.digest import checkpoint_sha256
from util.errors import UserError

TENSORS = {"a": torch.arange(300_000.0), "b": torch.ones(7), "empty": torch.ones(0)}
SAVE = {
    "zip": torch.save,
    "legacy": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "safetensors": save_file,
    "empty": lambda tensors, path: path.write_bytes(b""),
    "half a zip": lambda tensors, path: path.write_bytes(b"PK\x03\x04" + bytes(3_000_000)),
}


@pytest.mark.parametrize("kind", SAVE)
def test_it_is_the_sha256_of_the_whole_file(tmp_path, kind):
    SAVE[kind](TENSORS, tmp_path / "a")
    assert checkpoint_sha256(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_a_changed_number_of_a_zip_is_noticed_and_its_member_named(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    assert torch.load(tmp_path / "a.pth").keys() == TENSORS.keys()  # which torch does not notice
    with pytest.raises(UserError, match=r"a\.pth is damaged: the checksum of a/data/0 in it is wrong"):
        checkpoint_sha256(tmp_path / "a.pth")


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot read checkpoint .*No such file"):
        checkpoint_sha256(tmp_path / "a")
