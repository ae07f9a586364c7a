"""Finished runs measured by networks, LPIPS and FID, against the packages that define them."""

import importlib.util
import os

import pytest
import torch

from tests.checkpoints import Call, dumps, write_zip
from tests.runs import pixels, table


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A torch.hub of a random AlexNet alone, in half the size."""
    from torchvision.models import alexnet

    hub = tmp_path_factory.mktemp("home") / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(alexnet(weights=None).half().state_dict(), hub / "alexnet-owt-7be5be79.pth")
    return hub


def test_lpips_is_the_packages_own(runs, evaluate, backbone, monkeypatch):
    lpips = pytest.importorskip("lpips")
    out, files = evaluate(runs / "inpainting" / "one", "--weights", backbone)
    assert "no lpips_vgg: no vgg16-397923af.pth in" in out
    monkeypatch.setenv("TORCH_HOME", str(backbone.parents[1]))
    with pytest.warns(UserWarning, match="pretrained"):
        theirs = lpips.LPIPS(net="alex", verbose=False)
    rows = [row for row in table(files["images.csv"]) if row["run"] == "one"]
    for row in rows:
        paths = (runs / "inpainting" / "one" / kind / f"{row['image']}.png" for kind in ("input", "recon"))
        pair = [lpips.im2tensor(pixels(path)) for path in paths]
        assert float(row["lpips_alex"]) == pytest.approx(float(theirs(*pair).detach()), rel=1e-4)
    assert len({row["lpips_alex"] for row in rows}) == 3


def test_weights_that_cannot_be_used(runs, refused, evaluate, tmp_path, monkeypatch):
    one = runs / "inpainting" / "one"
    assert "no alexnet-owt-7be5be79.pth in" in refused(one, "--lpips", "alex", "--weights", tmp_path)
    assert "no weights-inception" in refused(one, "--fid", "--weights", tmp_path)
    pytest.importorskip("lpips")
    path = tmp_path / "alexnet.pth"
    torch.save({"features.0.weight": torch.ones(3)}, path)
    assert "is not the backbone alex" in refused(one, "--weights", tmp_path)
    write_zip(path, dumps(Call(os.system, f"touch {tmp_path / 'sentinel'}")), {})
    assert "is refused" in refused(one, "--lpips", "alex", "--weights", tmp_path)
    assert not (tmp_path / "sentinel").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install lpips" in refused(one, "--lpips", "alex", "--weights", tmp_path)
    assert (
        "no lpips_alex, lpips_vgg: the package is missing (pip install lpips)"
        in evaluate(one, "--weights", tmp_path)[0]
    )


@pytest.mark.slow
def test_fid_is_the_packages_own(runs, evaluate, tmp_path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        extractor = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(extractor.state_dict(), path)
    folders = [runs / "inpainting" / "one" / kind for kind in ("recon", "input")]
    out, files = evaluate(runs / "inpainting" / "one", "--fid", "--weights", tmp_path)
    theirs = fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), fid=True, cuda=False, verbose=False,
        feature_extractor_weights_path=str(path),
    )["frechet_inception_distance"]  # fmt: skip
    (row,) = (row for row in table(files["summary.csv"]) if (row["run"], row["metric"]) == ("one", "fid"))
    assert float(row["mean"]) == pytest.approx(theirs, rel=1e-4)
    assert "compare it only with that of as many others" in out
