"""What the command says beforehand: the settings it resolves, the cost it foresees, what it will not use."""

import yaml

from ldm.models.diffusion.cost import most_passes
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.resample_settings import ResampleSettings
from sample_condition import main
from tests.test_sample_condition import QUICK, place, rows, words  # noqa: F401
from util.results import PASSES

STAGES = ("pixel", "latent", "final")


def plan(place, tmp_path, capsys, *extra, steps=None):  # noqa: F811
    """What --dry_run says: the settings, and the rest of the text."""
    assert main(words(place, tmp_path / "out", "--dry_run", *extra, steps=steps)) == 0
    assert not (tmp_path / "out").exists()
    settings, _, rest = capsys.readouterr().out.partition("\n\n")
    return yaml.safe_load(settings), rest


def test_dry_run_needs_no_weights_and_tells_inputs_and_cost(place, tmp_path, capsys):  # noqa: F811
    published = [word.partition("=")[0] for word in QUICK]
    undo = [f"{published[0]}=10", f"{published[1]}=2000", f"{published[2]}=500"]
    settings, rest = plan(place, tmp_path, capsys, "--diffusion_config", "none.ckpt", "--limit", "3", *undo)
    assert settings["ddim_steps"] == 500
    assert "3 pictures" in rest
    assert "b b" in rest
    numbers = rest.replace(",", "").split()
    for passes in (665, 9000, 34_000, 3 * 665, 3 * 9000, 3 * 34_000):  # the published code's, at 500 steps
        assert str(passes) in numbers


def test_the_cost_told_is_the_cost_of_a_run(place, tmp_path, monkeypatch, capsys):  # noqa: F811
    calls = []
    apply_model = LatentDiffusion.apply_model
    monkeypatch.setattr(LatentDiffusion, "apply_model", lambda *args: calls.append(1) or apply_model(*args))
    assert main(words(place, tmp_path, "--limit", "1", "conditioning.resample.travel_length=2")) == 0
    never_early = {"interval": 1, "travel_length": 2, "pixel": {"max_iters": 2}, "latent": {"max_iters": 2}}
    cost = most_passes(ResampleSettings.from_config(never_early), 6)
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


def test_precedence_is_task_preset_words_arguments(place, tmp_path, capsys):  # noqa: F811
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


def test_what_is_accepted_and_not_used_is_said(place, tmp_path, capsys):  # noqa: F811
    words_ = words(place, tmp_path, "--dry_run", "--model_config", "x.yaml", "conditioning.params.scale=0.3")
    assert main(words_) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 2
    assert "--model_config is accepted and" in err
    assert "soft_scale (0.5)" in err
