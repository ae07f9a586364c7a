import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataloader import DATASETS, get_dataloader, get_dataset, register_dataset, to_tensor
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """Five 16x16 pictures, the i-th a flat grey of 50 i."""
    for i in range(5):
        Image.new("RGB", (16, 16), (50 * i,) * 3).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["ffhq", "celeb"])
def test_items(folder, name):
    dataset = get_dataset(name, root=folder)
    assert len(dataset) == 5
    for i, item in enumerate(dataset):
        assert item.name == str(i)
        assert item.path == folder / f"{i}.png"
        assert item.image.shape == (3, 16, 16)
        assert item.image.dtype == torch.float32
        torch.testing.assert_close(item.image, torch.full((3, 16, 16), 50 * i / 127.5 - 1))


def test_range_and_layout():
    pixels = np.zeros((8, 9, 3), np.uint8)
    pixels[1, 2] = 255, 0, 128
    image = to_tensor(Image.fromarray(pixels))
    assert image.is_contiguous()
    assert (image.min(), image.max()) == (-1, 1)
    torch.testing.assert_close(image[:, 1, 2], torch.tensor([1.0, -1.0, 128 / 127.5 - 1]))


def test_same_numbers_as_torchvision():
    transforms = pytest.importorskip("torchvision.transforms")
    published = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    picture = Image.fromarray(np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(16, 16, 3))
    assert torch.equal(to_tensor(picture), published(picture))


def test_transforms_take_the_picture(folder):
    dataset = get_dataset("ffhq", root=folder, transforms=lambda picture: picture.getpixel((0, 0)))
    assert dataset[2].image == (100, 100, 100)


def test_limit_does_not_change_names(tmp_path):
    for name in ("a.png", "a.bmp", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    assert [item.name for item in get_dataset("ffhq", root=tmp_path, limit=1)] == ["a_bmp"]
    assert [item.name for item in get_dataset("ffhq", root=tmp_path, limit=9)] == ["a_bmp", "a_png", "b"]


@pytest.mark.parametrize("size", [8, (8, 8), [8, 8]])
def test_size(folder, size):
    assert get_dataset("ffhq", root=folder, size=size, resize="resize")[0].image.shape == (3, 8, 8)
    with pytest.raises(UserError, match="8x8 is needed"):
        get_dataset("ffhq", root=folder, size=size)[0]


def test_check_names_every_bad_picture_at_once(folder):
    get_dataset("ffhq", root=folder, size=16).check()
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (20, 16)).save(folder / "wide.png")
    with pytest.raises(UserError) as error:
        get_dataset("ffhq", root=folder, size=16).check()
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "empty.png" in lines[0]
    assert "wide.png" in lines[1]


def test_check_does_not_list_thousands(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        get_dataset("ffhq", root=tmp_path).check()
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 20 more pictures"


def test_unknown_dataset_and_keyword(folder):
    with pytest.raises(UserError, match="unknown dataset 'ffqh': did you mean 'ffhq'"):
        get_dataset("ffqh", root=folder)
    with pytest.raises(UserError, match="did you mean 'resize'"):
        get_dataset("ffhq", root=folder, resise="resize")


def test_register_one_of_ones_own(folder):
    @register_dataset(name="mine")
    class Mine(torch.utils.data.Dataset):
        def __init__(self, root, transforms):
            self.root = root

    try:
        assert get_dataset("mine", root=folder).root == folder
    finally:
        del DATASETS._entries["mine"]


def test_loader(folder):
    dataset = get_dataset("ffhq", root=folder)
    batches = list(get_dataloader(dataset, batch_size=2, num_workers=0, train=False))
    assert [batch.names for batch in batches] == [["0", "1"], ["2", "3"], ["4"]]
    assert batches[0].images.shape == (2, 3, 16, 16)
    assert batches[0].paths == [folder / "0.png", folder / "1.png"]
    torch.testing.assert_close(batches[2].images[0], dataset[4].image)


def test_training_loader_shuffles_and_drops_the_rest(folder):
    loader = get_dataloader(get_dataset("ffhq", root=folder), batch_size=2, num_workers=0, train=True)
    torch.manual_seed(0)
    orders = {tuple(name for batch in loader for name in batch.names) for _ in range(8)}
    assert all(len(order) == 4 for order in orders)
    assert len(orders) > 1


@pytest.mark.parametrize(("folder", "count", "size"), [("samples", 12, 256), ("demo", 16, 128)])
def test_shipped_pictures(folder, count, size):
    dataset = get_dataset("ffhq", root=ROOT / "data" / folder, size=size)
    assert len(dataset) == count
    dataset.check()
    readme = (ROOT / "data" / folder / "README.md").read_text()
    assert "CC0" in readme
    if folder == "samples":
        assert all(source.path.name in readme for _, source in dataset.pictures), "each has its source and licence"


def test_importing_loads_no_torchvision():
    code = (
        "import sys, data.dataloader; print([m for m in ('torchvision', 'skimage', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_finding_pictures_loads_no_torch():
    code = "import sys, data.pictures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
