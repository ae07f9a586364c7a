"""Several images at once: each comes out as alone but for rounding, whatever befalls its neighbours."""

import io

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.models.diffusion.ddpm import LatentDiffusion
from sample_condition import main
from tests.runs import rows, snapshot, words
from tests.tiny import write_pictures

FOUR = ["--batch_size", "4"]


def command(place, out, *extra):
    """Few steps, which still have a hard consistency and the final stage."""
    return words(place, out, "--quiet", *extra, steps=4)


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    """The folder of a run that restores image by image."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main(command(place, out)) == 0
    stages = {row["stage"] for row in rows(out / "progress" / "b b" / "trace.csv")}
    assert stages == {"soft", "pixel", "final"}
    return out


def assert_same_but_for_rounding(out, expected, left_out=None):
    """Two folders hold the same, pictures to a grey level and numbers to a few digits; but for an image left out.

    Of what is drawn from these numbers and pictures only the names are compared.
    """
    found, wanted = (
        {name: content for name, content in snapshot(folder).items() if not left_out or left_out not in name}
        for folder in (out, expected)
    )
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        if name.endswith(".png"):
            pixels = [np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (found[name], content)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1, name
        elif name.endswith(".csv"):
            tables = ([row for row in table if row[0] != left_out] for table in (found[name], content))
            for some, others in zip(*tables, strict=True):
                assert_agree(some, others)
        elif name.startswith("results/"):
            assert_agree(list(found[name].values()), list(content.values()))
        elif name not in ("settings.yaml", "report.html") and not name.endswith((".svg", ".webp")):
            assert found[name] == content, name


def assert_agree(some, others):
    """Values are equal as text, or as numbers to a few digits."""
    for one, other in zip(some, others, strict=True):
        assert one == other or float(one) == pytest.approx(float(other), rel=1e-2)


@pytest.fixture
def sizes(monkeypatch):
    """The size of each batch that the UNet has run on."""
    sizes, apply_model = [], LatentDiffusion.apply_model
    monkeypatch.setattr(
        LatentDiffusion, "apply_model", lambda own, x, *more: sizes.append(len(x)) or apply_model(own, x, *more)
    )
    return sizes


def spoil(monkeypatch, spoilt):
    """Let what the UNet gives pass through ``spoilt``."""
    apply_model = LatentDiffusion.apply_model
    monkeypatch.setattr(LatentDiffusion, "apply_model", lambda *args: spoilt(apply_model(*args)))


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)])
def test_images_of_a_batch_come_out_as_alone(size, place, alone, sizes, tmp_path):
    assert main(command(place, tmp_path, "--batch_size", str(size))) == 0
    assert_same_but_for_rounding(tmp_path, alone)
    assert set(sizes) == {2: {2}, 3: {3, 1}, 8: {4}}[size]
    record = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert record["run"]["batch_size"] == size


@pytest.mark.parametrize("preset", ["demo", "best"])
def test_exact_stages_draws_and_refinement_take_a_batch_and_what_is_left_over(preset, place, sizes, tmp_path):
    given = ["--preset", preset, "--limit", "3"]
    assert main(command(place, tmp_path / "one", *given)) == 0
    assert main(command(place, tmp_path / "out", *given, "--batch_size", "2")) == 0
    assert {row["stage"] for row in rows(tmp_path / "out" / "progress" / "b b" / "trace.csv")} >= {"pixel", "refine"}
    assert {1, 2} == set(sizes)
    # Its large steps make more of rounding, with random weights: what counts is compared.
    for found, wanted in zip(*(rows(tmp_path / out / "metrics.csv") for out in ("out", "one")), strict=True):
        assert float(found["psnr"]) == pytest.approx(float(wanted["psnr"]), abs=0.05)


def test_another_batch_size_is_no_other_setting(place, alone, tmp_path, capsys):
    assert main(command(place, tmp_path, "--limit", "1")) == 0
    capsys.readouterr()
    assert main(command(place, tmp_path, "--batch_size", "3")) == 0
    assert "begun under other circumstances: run.batch_size: 1 there, 3 now" in capsys.readouterr().err
    assert_same_but_for_rounding(tmp_path, alone)


def test_images_of_other_shapes_have_batches_of_their_own(place, sizes, tmp_path):
    pictures = write_pictures(tmp_path / "in", ["a.png", "c.png", "e.png"])
    write_pictures(pictures, ["b.png", "d.png"], side=48)
    task = yaml.safe_load((place / "task.yaml").read_text())
    task["measurement"] = {"operator": {"name": "super_resolution", "scale_factor": 4}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    given = ["--task_config", str(tmp_path / "task.yaml"), "--data", str(pictures), "--ddim_steps", "2"]
    assert main(command(place, tmp_path / "one", *given)) == 0
    sizes.clear()
    assert main(command(place, tmp_path / "out", *given, "--batch_size", "5")) == 0
    assert set(sizes) == {2, 3}
    assert_same_but_for_rounding(tmp_path / "out", tmp_path / "one")


def test_several_restorations_of_a_measurement_fill_a_batch(place, sizes, tmp_path):
    given = ["--n_samples_per_class", "2", "--limit", "3", "--ddim_steps", "2"]
    assert main(command(place, tmp_path / "one", *given)) == 0
    sizes.clear()
    assert main(command(place, tmp_path / "out", *given, *FOUR)) == 0
    assert (set(sizes), sizes[0], sizes[-1]) == ({4, 2}, 4, 2)
    assert_same_but_for_rounding(tmp_path / "out", tmp_path / "one")


@pytest.mark.parametrize("step", [0, 2])
def test_an_image_that_fails_ends_and_the_others_go_on(step, place, alone, sizes, tmp_path, monkeypatch):
    def break_the_second(noise):
        noise = noise.clone()
        if len(noise) == 4 and (len(steps) == step):
            noise[1] = torch.nan
        return noise

    from ldm_inverse.solvers.sampler_run import SamplerRun

    steps, finish = [], SamplerRun.finished
    monkeypatch.setattr(SamplerRun, "finished", lambda *args: finish(*args) or steps.append(1))
    spoil(monkeypatch, break_the_second)
    assert main(command(place, tmp_path, *FOUR)) == 1
    assert rows(tmp_path / "failed.csv") == [
        {"image": "a_png", "sample": "0", "step": str(step), "reason": rows(tmp_path / "failed.csv")[0]["reason"]}
    ]
    assert "is not finite" in rows(tmp_path / "failed.csv")[0]["reason"]
    (tmp_path / "failed.csv").unlink()
    assert_same_but_for_rounding(tmp_path, alone, left_out="a_png")
    assert not (tmp_path / "recon" / "a_png.png").exists()
    assert [row["step"] for row in rows(tmp_path / "progress" / "a_png" / "trace.csv")][-1] == str(step)
    assert set(sizes) == {4}  # the others are not begun again


# Settings of each of the other samplers, with few passes.
OTHERS = {
    "dps": ["conditioning.dps.through_unet=true"],
    "psld": [],
    # Without the codebook, where rounding can choose another entry.
    "daps": [f"conditioning.daps.{word}" for word in ("iterations=2", "ode_steps=1", "quantise=false")],
    "sitcom": ["conditioning.sitcom.input.max_iters=2"],
}


@pytest.mark.parametrize("sampler", OTHERS)
def test_of_every_sampler_an_image_that_fails_ends_alone(sampler, place, tmp_path, monkeypatch):
    from ldm_inverse.solvers.sampler_run import SamplerRun

    given = [f"conditioning.main_sampler={sampler}", *OTHERS[sampler]]
    assert main(command(place, tmp_path / "one", *given)) == 0
    steps, finish = [], SamplerRun.finished
    monkeypatch.setattr(SamplerRun, "finished", lambda *args: finish(*args) or steps.append(1))
    apply_model = LatentDiffusion.differentiable_apply_model

    def break_the_second(own, x, *more):
        noise = apply_model(own, x, *more)
        broken = torch.arange(len(x)).reshape(-1, 1, 1, 1) == 1
        return torch.where(broken, torch.nan, noise) if len(x) == 4 and len(steps) == 1 else noise

    monkeypatch.setattr(LatentDiffusion, "differentiable_apply_model", break_the_second)
    assert main(command(place, tmp_path / "out", *given, *FOUR)) == 1
    (failed,) = rows(tmp_path / "out" / "failed.csv")
    assert (failed["image"], failed["step"]) == ("a_png", "1")
    assert "is not finite" in failed["reason"]
    assert not (tmp_path / "out" / "recon" / "a_png.png").exists()
    wanted = {row["image"]: float(row["psnr"]) for row in rows(tmp_path / "one" / "metrics.csv")}
    found = {row["image"]: float(row["psnr"]) for row in rows(tmp_path / "out" / "metrics.csv")}
    assert found.keys() == wanted.keys() - {"a_png"}
    assert all(value == pytest.approx(wanted[image], abs=0.1) for image, value in found.items())


def interrupt(monkeypatch, calls, error):
    """Raise an error at the UNet's call of this number."""
    seen = []

    def interrupted(noise):
        seen.append(1)
        if len(seen) == calls:
            raise error
        return noise

    spoil(monkeypatch, interrupted)


def test_a_batch_that_was_interrupted_goes_on_in_batches_of_another_size(place, alone, sizes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 8, KeyboardInterrupt)
        assert main(command(place, tmp_path, *FOUR)) == 130
    assert sorted(path.parent.name for path in tmp_path.rglob("state.safetensors")) == [
        "a_jpg",
        "a_png",
        "b b",
        "sub_c",
    ]
    before = len(sizes)
    (tmp_path / "progress" / "b b" / "state.safetensors").unlink()  # this one starts anew, and so apart from the others
    assert main(command(place, tmp_path, "--batch_size", "3")) == 0
    batches = [size for number, size in enumerate(sizes[before:]) if not number or size != sizes[before + number - 1]]
    assert batches == [2, 1]
    assert sizes[before:].count(2) < sizes[:before].count(4) + 1
    assert_same_but_for_rounding(tmp_path, alone)


def short_of_memory(error, above, after=0):
    """Let the UNet fail on batches larger than ``above``, once it has run ``after`` times."""
    seen = []

    def spoilt(noise):
        seen.append(1)
        if len(noise) > above and len(seen) > after:
            raise error
        return noise

    return spoilt


NO_MEMORY = {
    "card": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "processor": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
}


@pytest.mark.parametrize(("where", "above", "after"), [("card", 2, 0), ("processor", 1, 7)])
def test_where_memory_is_short_the_batch_is_halved(
    where, above, after, place, alone, sizes, tmp_path, monkeypatch, capsys
):  # fmt: skip
    spoil(monkeypatch, short_of_memory(NO_MEMORY[where], above, after))
    assert main(command(place, tmp_path, *FOUR)) == 0
    assert_same_but_for_rounding(tmp_path, alone)
    first = after + 1
    assert sizes[:first] == [4] * first
    assert 4 not in sizes[first:]  # nor for what comes later
    assert sizes[-1] == above
    err = capsys.readouterr().err
    assert "warning: out of memory with 4 images at once: continuing with 2" in err
    assert err.count("warning: out of memory") == (1 if above == 2 else 2)


def test_where_one_image_is_too_much_it_is_said(place, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, short_of_memory(NO_MEMORY["card"], above=0))
    assert main(command(place, tmp_path, *FOUR)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning", "warning", "error"]
    assert lines[-1].startswith("error: out of memory; finished results are kept")
