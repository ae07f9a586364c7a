"""What is written down of a run."""

import torch

from util.record import provenance, sha256


def test_provenance_names_what_a_result_depends_on(tmp_path):
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"abc")
    found = provenance(checkpoint, torch.device("cpu"))
    assert found["checkpoint"]["sha256"] == sha256(checkpoint)
    assert sha256(checkpoint) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found["versions"]["torch"]
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
