"""The command says beforehand which settings it resolved, what they cost, and which it will not use."""

import pytest
import yaml

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.operators.inpainting import Inpainting
from ldm_inverse.runs.results import PASSES
from ldm_inverse.solvers.resample_settings import ResampleSettings
from sample_condition import main
from tests.runs import QUICK, rows, words
from tests.tiny import write_pictures
from util.settings import read

STAGES = ("pixel", "latent", "final")


def plan(place, tmp_path, capsys, *extra, steps=None):
    """The output of --dry_run: the settings, and the rest of the text."""
    assert main(words(place, tmp_path / "out", "--dry_run", *extra, steps=steps)) == 0
    assert not (tmp_path / "out").exists()
    settings, _, rest = capsys.readouterr().out.partition("\n\n")
    return yaml.safe_load(settings), rest


def test_dry_run_needs_no_weights_and_tells_inputs_and_cost(place, tmp_path, capsys):
    published = [word.partition("=")[0] for word in QUICK]
    undo = [f"{published[0]}=10", f"{published[1]}=2000", f"{published[2]}=500"]
    settings, rest = plan(place, tmp_path, capsys, "--diffusion_config", "none.ckpt", "--limit", "3", *undo)
    assert settings["ddim_steps"] == 500
    assert "3 pictures" in rest
    assert "b b" in rest
    numbers = rest.replace(",", "").split()
    for passes in (665, 9000, 43_000, 3 * 665, 3 * 9000, 3 * 43_000):  # the published code's, at 500 steps
        assert str(passes) in numbers


@pytest.mark.parametrize(("sigma", "is_told"), [(25, True), (0.5, False)])
def test_a_noise_level_in_other_units_is_told(sigma, is_told, place, tmp_path, capsys):
    assert main(words(place, tmp_path / "out", "--dry_run", f"measurement.noise.sigma={sigma}")) == 0
    assert ("25 of 255 levels are 0.196" in capsys.readouterr().err) == is_told


def test_the_cost_told_is_the_cost_of_a_run(place, tmp_path, monkeypatch, capsys):
    calls = []
    apply_model = LatentDiffusion.apply_model
    monkeypatch.setattr(LatentDiffusion, "apply_model", lambda *args: calls.append(1) or apply_model(*args))
    assert main(words(place, tmp_path, "--limit", "1", "conditioning.resample.travel_length=2")) == 0
    never_early = {"interval": 1, "travel_length": 2, "pixel": {"max_iters": 2}, "latent": {"max_iters": 2}}
    cost = read(ResampleSettings, never_early).cost(6)
    assert len(calls) == cost.unet
    trace = rows(tmp_path / "progress" / "a_jpg" / "trace.csv")
    iterations = {stage: sum(int(row["iterations"]) for row in trace if row["stage"] == stage) for stage in STAGES}
    assert iterations["pixel"] == cost.pixel
    assert iterations["latent"] + iterations["final"] + 6 == cost.decoder  # and 6 soft steps
    # What is decoded for the pictures of the progress and for the result is not among the passes.
    unet, none, forward, backward, encoder, _ = (sum(int(row[key]) for row in trace) for key in PASSES)
    assert (unet, none, forward, backward) == (cost.unet, 0, cost.decoder + cost.decoder_forward, cost.decoder)
    assert encoder == cost.encoder > 0
    (row,) = rows(tmp_path / "metrics.csv")
    assert tuple(int(row[key]) for key in PASSES) == (unet, 0, forward, backward, encoder, 0)
    assert (
        f"UNet {unet}, decoder {forward} forward and {backward} backward, encoder {encoder} forward"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("refine", ["null", "{max_iters: 4}"])
def test_every_pass_through_the_operator_is_among_those_told(refine, place, tmp_path, monkeypatch, capsys):
    given, calls = ["--limit", "1", f"conditioning.resample.refine={refine}"], []
    _, told = plan(place, tmp_path, capsys, *given, steps=6)
    most = next(int(line.split()[4].replace(",", "")) for line in told.splitlines() if "operator, forward" in line)
    forward = Inpainting.forward
    monkeypatch.setattr(
        Inpainting, "forward", lambda own, x, **state: (x.requires_grad and calls.append(1)) or forward(own, x, **state)
    )
    assert main(words(place, tmp_path / "out", *given)) == 0
    unused = most - len(calls)
    assert unused == 0 if refine == "null" else 0 < unused < 1 + 5 + 25


def test_precedence_is_task_preset_words_arguments(place, tmp_path, capsys):
    preset = tmp_path / "own.yaml"
    preset.write_text("ddim_steps: 20\nddim_eta: 0.25\nconditioning: {resample: {gamma: 7, soft_scale: 3}}\n")
    given = ["--preset", str(preset)]
    assert plan(place, tmp_path, capsys)[0]["ddim_steps"] == 500
    settings, _ = plan(place, tmp_path, capsys, *given, "conditioning.resample.gamma=8")
    assert (settings["ddim_steps"], settings["ddim_eta"]) == (20, 0.25)
    assert settings["conditioning"]["resample"]["gamma"] == 8
    assert settings["conditioning"]["resample"]["soft_scale"] == 3
    assert plan(place, tmp_path, capsys, *given, "ddim_steps=30")[0]["ddim_steps"] == 30
    assert plan(place, tmp_path, capsys, *given, "ddim_steps=30", steps=40)[0]["ddim_steps"] == 40


def test_what_is_accepted_and_not_used_is_said(place, tmp_path, capsys):
    words_ = words(place, tmp_path, "--dry_run", "--model_config", "x.yaml", "conditioning.params.scale=0.3")
    assert main(words_) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 2
    assert "--model_config is accepted and" in err
    assert "soft_scale (0.5)" in err


def test_what_skip_bad_skips_is_not_counted(place, tmp_path, capsys):
    data = write_pictures(tmp_path / "in", ["a.png", "b.png", "c.png"])
    (data / "b.png").write_bytes(b"")
    _, rest = plan(place, tmp_path, capsys, "--data", str(data), "--skip_bad", steps=2)
    assert "2 pictures:" in rest
    assert "for all 2" in rest
    assert "left out: " in rest
    assert "b.png" in rest.partition("left out: ")[2]
