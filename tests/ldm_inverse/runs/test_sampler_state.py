"""The file that keeps where a restoration stands."""

import pytest
import torch

from ldm_inverse.runs.sampler_state import SamplerState, encode, read


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_state_comes_back_exactly(layout, tmp_path):
    generator = torch.Generator().manual_seed(3)
    torch.randn(5, generator=generator)
    latent = torch.randn(1, 3, 4, 4).contiguous(memory_format=layout)
    trace = [{"step": 0, "first_loss": 0.1 + 0.2, "last_loss": None, "stop": ""}]
    path = tmp_path / "state"
    path.write_bytes(encode(SamplerState(7, latent, generator.get_state()), trace, 1.5))
    expected = torch.randn(5, generator=generator)
    found = read(path, torch.Generator())
    assert (found.state.done, found.trace, found.seconds) == (7, trace, 1.5)
    assert torch.equal(found.state.latent, latent)
    assert found.state.latent.stride() == latent.stride()
    other = torch.Generator()
    other.set_state(found.state.generator)
    assert torch.equal(torch.randn(5, generator=other), expected)


def test_what_is_not_there_damaged_or_of_another_device_is_none(tmp_path):
    path = tmp_path / "state"
    assert read(path, torch.Generator()) is None
    content = encode(SamplerState(1, torch.zeros(1, 3, 2, 2), torch.Generator().get_state()), [], 0.0)
    for damaged in (b"", content[:-1], b"{}" + content):
        path.write_bytes(damaged)
        assert read(path, torch.Generator()) is None
    path.write_bytes(encode(SamplerState(1, torch.zeros(1, 3, 2, 2), torch.zeros(16, dtype=torch.uint8)), [], 0.0))
    assert read(path, torch.Generator()) is None
