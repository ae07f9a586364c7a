import numpy as np
import pytest
import torch

from tests.reference.recorded import recorded
from util.errors import UserError
from util.img_utils import mask_generator

RANGES = {
    "random": {"mask_prob_range": (0.7, 0.71)},
    "box": {"mask_len_range": (16, 33)},
    "extreme": {"mask_len_range": (16, 33)},
    "both": {"mask_len_range": (16, 33), "mask_prob_range": (0.7, 0.71)},
}


def draw(kind, seed=0, shape=(64, 64), **options):
    options = RANGES[kind] | {"margin": (8, 8)} | options
    return mask_generator(kind, **options).draw(*shape, np.random.RandomState(seed))


@pytest.mark.parametrize("kind", ["random", "box", "extreme"])
def test_recorded(kind):
    arrays, meta = recorded("operators")
    rng = np.random.RandomState(meta["numpy_seed_masks"])
    generator = mask_generator(kind, image_size=64, margin=(8, 8), rng=rng, **RANGES[kind])
    assert torch.equal(generator(arrays["image"]).expand(1, 3, 64, 64), arrays[f"mask/{kind}"].double())


def test_random_drops_the_share():
    for shape in ((64, 64), (40, 70)):
        assert draw("random", shape=shape, mask_prob_range=(0.25, 0.25)).sum() == shape[0] * shape[1] * 0.75


@pytest.mark.parametrize("seed", range(20))
def test_box_is_a_rectangle_within_the_margin(seed):
    mask = draw("box", seed, shape=(50, 80), mask_len_range=(10, 31), margin=(8, 12))
    rows, columns = np.nonzero((mask == 0).any(1))[0], np.nonzero((mask == 0).any(0))[0]
    assert (mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
    assert 10 <= len(rows) <= 30
    assert 10 <= len(columns) <= 30
    assert rows[0] >= 8
    assert rows[-1] < 50 - 8
    assert columns[0] >= 12
    assert columns[-1] < 80 - 12


def test_extreme_is_the_complement_of_box():
    assert np.array_equal(draw("extreme", 3), 1 - draw("box", 3))


def test_both_is_box_then_random():
    rng = np.random.RandomState(3)
    box = mask_generator("box", margin=(8, 8), **RANGES["box"]).draw(64, 64, rng)
    scatter = mask_generator("random", **RANGES["random"]).draw(64, 64, rng)
    assert np.array_equal(draw("both", 3), box * scatter)


def test_one_mask_for_each_image():
    generator = mask_generator("random", rng=np.random.RandomState(0), **RANGES["random"])
    masks = generator(torch.zeros(2, 3, 16, 16))
    assert masks.shape == (2, 1, 16, 16)
    assert not torch.equal(masks[0], masks[1])


def test_tightest_box_that_fits():
    mask = draw("box", shape=(21, 21), mask_len_range=(4, 5), margin=(8, 8))
    assert (mask[8:12, 8:12] == 0).all()
    with pytest.raises(UserError, match="does not fit an image of 20 x 21: 21 x 21 or more"):
        draw("box", shape=(20, 21), mask_len_range=(4, 5), margin=(8, 8))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("boxes", {}, "did you mean 'box'.*both, box, extreme, random"),
        (["box"], {}, "unknown mask_type"),
        ("random", {}, "needs mask_prob_range"),
        ("box", {}, "needs mask_len_range"),
        ("both", {"mask_len_range": (1, 2)}, "needs mask_prob_range"),
        ("random", {"mask_prob_range": (0.7, 0.6)}, "mask_prob_range.*low not above high"),
        ("random", {"mask_prob_range": (0.7, 1.1)}, "mask_prob_range.*0 to 1"),
        ("random", {"mask_prob_range": 0.7}, "mask_prob_range.*low, high"),
        ("box", {"mask_len_range": (33, 16)}, "mask_len_range.*first number below"),
        ("box", {"mask_len_range": (0, 16)}, "mask_len_range.*1 or more"),
        ("box", {"mask_len_range": (16, 128), "image_size": 128}, "does not fit an image of 128 x 128"),
        ("box", {"mask_len_range": (16, 33), "margin": (-1, 0)}, "margin"),
        ("box", {"mask_len_range": (16, 33), "image_size": 0}, "image_size"),
    ],
)
def test_bad_settings(kind, options, words):
    with pytest.raises(UserError, match=words) as caught:
        mask_generator(kind, **options)
    assert len(str(caught.value).splitlines()) == 1
