"""Random settings and randomly damaged files: the command runs, or refuses in a line; it never crashes or runs code.

The seed is fixed, so that a failure belongs to a change; `HYPOTHESIS_SEED=...` chooses other examples.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from sample_condition import main
from tests.runs import words
from tests.tiny import write_pictures

SEED = int(os.environ.get("HYPOTHESIS_SEED", 0))
RUNS_CODE = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "pty.spawn")

armed: list[str] = []


def _watch(event: str, _: object) -> None:
    if armed and event in RUNS_CODE:
        armed.append(event)


sys.addaudithook(_watch)


def ends_well(*arguments):
    """Run the command: status 0 or 1 with results, or 2 with an error of a few lines and nothing written."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", io.StringIO()
        armed[:] = ["armed"]
        try:
            with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
                status = main([*map(str, arguments), "--quiet", "--limit", "1", "--save_dir", str(out)])
        finally:
            happened, armed[:] = armed[1:], []
        assert not happened
        assert status in (0, 1, 2)
        assert "Traceback" not in err.getvalue()
        if status == 2:
            assert "error: " in err.getvalue()
            assert len(err.getvalue()) < 3000
            assert not list(out.glob("recon/*"))
        return status


def cases(number):
    """Settings of a property test with ``number`` examples, which HYPOTHESIS_SEED chooses."""

    def decorate(test):
        return seed(SEED)(settings(max_examples=number, deadline=None, derandomize=False, print_blob=True)(test))

    return decorate


@pytest.fixture
def unsampled(monkeypatch):
    """Restorations cost nothing and are grey."""
    monkeypatch.setattr(
        "ldm_inverse.runs.restoration.restore", lambda _, problem, *__: torch.zeros(1, 3, *problem.size)
    )


@pytest.fixture(scope="module")
def files(place):
    """The model's and the task's files, and a picture, as bytes."""
    from safetensors.torch import load_file

    state = load_file(place / "tiny.safetensors")
    torch.save({"state_dict": state}, place / "zip.ckpt")
    torch.save({"state_dict": state}, place / "legacy.ckpt", _use_new_zipfile_serialization=False)
    names = ("tiny.safetensors", "zip.ckpt", "legacy.ckpt", "task.yaml", "tiny.yaml")
    return {name: (place / name).read_bytes() for name in names}


NUMBERS = st.sampled_from((0, 1, 2, 3, 5, 7, 0.5, 1.5, 0.01, 31, 64, 1000)) | st.floats() | st.integers()
ODD = st.none() | st.booleans() | st.text(max_size=5) | st.lists(st.integers(-9, 99), max_size=3)
VALUES = NUMBERS | NUMBERS | ODD
PAIRS = st.lists(st.sampled_from((0, 0.3, 0.7, 1, 4, 8, 12)) | VALUES, min_size=2, max_size=2)
MASKS = st.fixed_dictionaries(
    {"name": st.just("inpainting"), "mask_type": st.sampled_from(("random", "box", "extreme", "both")) | ODD},
    optional={"mask_len_range": PAIRS, "mask_prob_range": PAIRS, "margin": PAIRS, "image_size": st.just(32) | VALUES},
)
BLURS = st.fixed_dictionaries(
    {"name": st.sampled_from(("gaussian_blur", "motion_blur", "camera_blur"))},
    optional={"kernel_size": VALUES, "intensity": VALUES, "kernel": ODD},
)
OTHERS = st.fixed_dictionaries(
    {"name": st.sampled_from(("super_resolution", "phase_retrieval", "noise", "nonlinear_blur", "blur"))},
    optional={"scale_factor": VALUES, "oversample": VALUES, "in_shape": ODD},
)
NOISES = st.fixed_dictionaries(
    {"name": st.sampled_from(("gaussian", "clean", "poisson")) | ODD},
    optional={"sigma": VALUES, "rate": VALUES, "noise_on_dropped": ODD},
)
STAGE = st.fixed_dictionaries({}, optional={"lr": VALUES, "eps": VALUES | st.just("noise"), "weight_decay": VALUES})
SOLVERS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("interval", "travel_length", "gamma", "soft_scale", "start", "soft_step"), VALUES),
        **{"pixel": STAGE, "latent": STAGE, "final": ODD, "refine": st.none() | ODD},
    },
)


def tasks(number):
    """The property of task files, with this many examples."""

    @cases(number)
    @given(operator=MASKS | BLURS | OTHERS, noise=NOISES, solver=SOLVERS, sampler=st.sampled_from(("resample", "none")))
    def test(place, operator, noise, solver, sampler):
        task = {
            "conditioning": {"main_sampler": sampler, "resample": solver},
            "data": {"root": str(place / "pictures")},
            "measurement": {"operator": operator, "noise": noise},
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.yaml"
            path.write_text(yaml.safe_dump(task))
            ends_well(*words(place, folder, steps=2), "--task_config", path)

    return test


test_random_tasks_run_or_are_refused = tasks(12)
test_many_random_tasks_run_or_are_refused = pytest.mark.slow(tasks(200))


def damage(content, data):
    """Change some bytes, and perhaps leave out the rest."""
    content = bytearray(content)
    places = st.integers(0, len(content) - 1) | st.integers(0, min(2000, len(content) - 1))
    for place in data.draw(st.lists(places, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    return bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])


def damaged(number, name, argument):
    """The property of a damaged file of this name, given as this argument."""

    @cases(number)
    @given(data=st.data())
    def test(place, files, data):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(damage(files[name], data))
            ends_well(*words(place, folder), argument, path)

    return pytest.mark.usefixtures("unsampled")(test)


test_damaged_safetensors = damaged(4, "tiny.safetensors", "--diffusion_config")
test_damaged_zips = damaged(4, "zip.ckpt", "--diffusion_config")
test_damaged_legacy_checkpoints = damaged(4, "legacy.ckpt", "--diffusion_config")
test_damaged_tasks = damaged(8, "task.yaml", "--task_config")
test_damaged_configurations = damaged(8, "tiny.yaml", "--ldm_config")
test_many_damaged_safetensors = pytest.mark.slow(damaged(80, "tiny.safetensors", "--diffusion_config"))
test_many_damaged_zips = pytest.mark.slow(damaged(80, "zip.ckpt", "--diffusion_config"))
test_many_damaged_legacy_checkpoints = pytest.mark.slow(damaged(80, "legacy.ckpt", "--diffusion_config"))
test_many_damaged_tasks = pytest.mark.slow(damaged(100, "task.yaml", "--task_config"))
test_many_damaged_configurations = pytest.mark.slow(damaged(100, "tiny.yaml", "--ldm_config"))


def pictures(number):
    """The property of damaged pictures, with this many examples."""

    @cases(number)
    @given(ending=st.sampled_from(("png", "jpg", "webp", "tif", "gif", "bmp")), data=st.data())
    def test(place, ending, data):
        with tempfile.TemporaryDirectory() as folder:
            path = write_pictures(Path(folder) / "in", [f"a.{ending}"]) / f"a.{ending}"
            path.write_bytes(damage(path.read_bytes(), data))
            ends_well(*words(place, folder), "--data", path.parent, "--resize", "resize")

    return pytest.mark.usefixtures("unsampled")(test)


test_damaged_pictures = pictures(12)
test_many_damaged_pictures = pytest.mark.slow(pictures(150))
