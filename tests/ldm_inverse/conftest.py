import pytest
import torch
import yaml

from ldm_inverse.operators.kernel_wizard import KernelWizard

TINY = {
    "input_nc": 3,
    "nf": 4,
    "front_RBs": 1,
    "back_RBs": 1,
    "N_frames": 1,
    "kernel_dim": 8,
    "use_vae": True,
    "KernelExtractor": {
        "norm": "none",
        "use_sharp": True,
        "n_blocks": 1,
        "padding_type": "reflect",
        "use_dropout": False,
    },
    "Adapter": {"norm": "none", "use_dropout": False},
}


@pytest.fixture(scope="session")
def tiny_blur_options(tmp_path_factory):
    """The path of options of a small blur network, whose weights (random) are where the options say."""
    folder = tmp_path_factory.mktemp("bkse")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(KernelWizard(TINY).state_dict(), folder / "weights.pth")
    options = folder / "options.yml"
    options.write_text(yaml.safe_dump({"KernelWizard": TINY | {"pretrained": str(folder / "weights.pth")}}))
    return str(options)
