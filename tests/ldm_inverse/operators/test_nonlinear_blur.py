import numpy as np
import pytest
import torch
import yaml

from ldm_inverse.measurements import get_operator
from ldm_inverse.operators.kernel_wizard import KernelWizard
from ldm_inverse.operators.nonlinear_blur import PUBLISHED_OPTIONS, SHIPPED_OPTIONS
from tests.ldm_inverse.conftest import TINY
from tests.reference.recorded import fill_parameters, recorded, relative_error
from util.errors import UserError


def test_recorded():
    arrays, meta = recorded("kernel_wizard")
    model = fill_parameters(KernelWizard(meta["params"]), meta["weights_seed"])
    assert relative_error(model.adaptKernel(arrays["sharp"], kernel=arrays["code"]), arrays["output"]) < 1e-13


def test_shipped_options_are_the_published_ones():
    options = yaml.safe_load(SHIPPED_OPTIONS.read_text())["KernelWizard"]
    with torch.device("meta"):
        model = KernelWizard(options)
        mean_and_variance = model.kernel_extractor(torch.empty(1, 128, 64, 64))
    assert mean_and_variance.shape == (1, 1024, 2, 2)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes["feature_extractor.15.conv2.weight"] == [64, 64, 3, 3]
    assert shapes["adapter.model.submodule.submodule.submodule.submodule.up.1.weight"] == [1024, 512, 4, 4]
    assert shapes["adapter.model.up.1.bias"] == [64]
    assert shapes["recon_trunk.23.weight"] == [256, 64, 3, 3]
    assert shapes["kernel_extractor.model.22.conv_block.5.weight"] == [1024, 1024, 3, 3]


def test_published_code_is_everyones(tiny_blur_options):
    operator = get_operator("nonlinear_blur", opt_yml_path=tiny_blur_options)
    code = operator.draw((2, 3, 256, 256), np.random.RandomState(5))["code"]
    want = (np.random.RandomState(0).randn(1, 8, 2, 2) * 1.2).astype(np.float32)
    assert np.array_equal(code.numpy(), np.concatenate([want, want]))


def test_works_on_unit_range_and_clamps(tiny_blur_options):
    operator = get_operator("nonlinear_blur", opt_yml_path=tiny_blur_options)
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (1, 3, 128, 128))).float()
    state = operator.draw(x.shape, np.random.RandomState(0))
    y = operator(x, **state)
    assert torch.allclose(y, (2 * operator.network.adaptKernel((x + 1) / 2, kernel=state["code"]) - 1).clamp(-1, 1))
    assert y.abs().max() == 1


def test_its_files_are_the_options_and_the_weights(tiny_blur_options):
    operator = get_operator("nonlinear_blur", opt_yml_path=tiny_blur_options)
    options, weights = operator.input_files()
    assert str(options) == tiny_blur_options
    assert weights == options.with_name("weights.pth")


def test_missing_weights_say_where_they_come_from(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for path in (PUBLISHED_OPTIONS, "bkse/options/generate_blur/default.yml", str(SHIPPED_OPTIONS)):
        with pytest.raises(UserError) as caught:
            get_operator("nonlinear_blur", opt_yml_path=path)
        for words in ("GOPRO_wVAE.pth", "VinAIResearch/blur-kernel-space-exploring", "models/", "camera_blur"):
            assert words in str(caught.value)


def options_with(folder, content, **changes):
    """Options whose weights file has this content."""
    (folder / "weights.pth").write_bytes(content)
    options = folder / "options.yml"
    options.write_text(yaml.safe_dump({"KernelWizard": TINY | {"pretrained": str(folder / "weights.pth")} | changes}))
    return str(options)


def test_weights_that_are_none(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("never",)

    for content in ("text", {"a": torch.zeros(1)}, [1], Evil()):
        torch.save(content, tmp_path / "content.pth")
        path = options_with(tmp_path, (tmp_path / "content.pth").read_bytes())
        with pytest.raises(UserError, match="does not hold the blur network's weights") as caught:
            get_operator("nonlinear_blur", opt_yml_path=path)
        assert len(str(caught.value).splitlines()) == 1
    for content in (b"", b"PK\x03\x04 cut"):
        with pytest.raises(UserError, match="does not hold"):
            get_operator("nonlinear_blur", opt_yml_path=options_with(tmp_path, content))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [true]", "cannot be read as YAML"),
        ("[]", "entry KernelWizard"),
        ("KernelWizard: {nf: 4}", "pretrained"),
        ("KernelWizard: {nf: 4, pretrained: x}", "KernelWizard needs input_nc"),
        ("KernelWizard: {input_nc: 4, pretrained: x}", "KernelWizard.input_nc: expected 3, got 4"),
    ],
)
def test_bad_options(tmp_path, text, words):
    (tmp_path / "options.yml").write_text(text)
    with pytest.raises(UserError, match=words):
        get_operator("nonlinear_blur", opt_yml_path=str(tmp_path / "options.yml"))


def test_bad_network_size(tmp_path):
    with pytest.raises(UserError, match="nf.*'many'"):
        get_operator("nonlinear_blur", opt_yml_path=options_with(tmp_path, b"", nf="many"))


def test_sizes(tiny_blur_options):
    operator = get_operator("nonlinear_blur", opt_yml_path=tiny_blur_options)
    operator.check_size(128, 256)
    with pytest.raises(UserError, match="multiples of 128, got 128 x 200"):
        operator.check_size(128, 200)
