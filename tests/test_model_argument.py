"""The model by one argument: `--model`, without a configuration where it tells its own."""

import pytest
import yaml

from sample_condition import main
from tests.runs import snapshot, words


@pytest.fixture
def by_model(place):
    """Words as `words` has them, with --model in place of the published names."""

    def by_model(out, *extra, model=place / "tiny.safetensors", **keywords):
        return ["--model", str(model), *words(place, out, *extra, **keywords)[4:]]

    return by_model


def test_a_model_beside_its_configuration_needs_no_other_argument(place, by_model, tmp_path):
    one = ["--limit", "1", "--quiet", "--threads", "1"]
    assert main(words(place, tmp_path / "published", *one, steps=2)) == 0
    assert main(by_model(tmp_path / "model", *one, steps=2)) == 0
    images = [(tmp_path / run / "recon" / "a_jpg.png").read_bytes() for run in ("published", "model")]
    assert images[0] == images[1]
    record = yaml.safe_load((tmp_path / "model" / "settings.yaml").read_text())
    assert record["run"]["ldm_config"] is None
    assert len(record["architecture"]["sha256"]) == 64
    assert main(["--from", str(tmp_path / "model"), "--save_dir", str(tmp_path / "again"), "--quiet"]) == 0
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "model")


def test_another_configuration_beside_the_model_is_another_run(by_model, tmp_path, place, capsys):
    model = tmp_path / "own.safetensors"
    model.write_bytes((place / "tiny.safetensors").read_bytes())
    (tmp_path / "own.yaml").write_text((place / "tiny.yaml").read_text())
    one = ["--limit", "1", "--quiet"]
    assert main(by_model(tmp_path / "out", *one, model=model, steps=2)) == 0
    config = yaml.safe_load((place / "tiny.yaml").read_text())
    config["model"]["params"]["linear_end"] = 0.02
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert main(by_model(tmp_path / "out", *one, model=model, steps=2)) == 2
    assert "architecture.sha256" in capsys.readouterr().err


def test_a_repeated_run_with_another_model_takes_the_configuration_that_is_given(place, tmp_path, capsys):
    """Also where that is the one that the run to repeat had."""
    assert main(words(place, tmp_path / "out", "--limit", "1", "--quiet", steps=2)) == 0
    model = tmp_path / "other.safetensors"  # of no known architecture, and with no configuration beside it
    model.write_bytes((place / "tiny.safetensors").read_bytes())
    again = ["--from", str(tmp_path / "out"), "--save_dir", str(tmp_path / "again"), "--model", str(model), "--quiet"]
    assert main([*again, "--dry_run"]) == 2
    assert "no known architecture" in capsys.readouterr().err
    assert main([*again, "--ldm_config", str(place / "tiny.yaml")]) == 0
    record = yaml.safe_load((tmp_path / "again" / "settings.yaml").read_text())
    assert record["run"]["ldm_config"] == str(place / "tiny.yaml")


def test_one_model_has_one_name(by_model, tmp_path, capsys):
    assert main([*by_model(tmp_path / "out"), "--diffusion_config", "other.ckpt"]) == 2
    assert "--model and --diffusion_config are two names for one thing" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told_with_those_that_are(by_model, tmp_path, capsys):
    assert main(by_model(tmp_path / "out", model="nowhere")) == 2
    err = capsys.readouterr().err
    assert "no checkpoint at nowhere" in err
    assert "demo/model.safetensors" in err
    assert not (tmp_path / "out").exists()


def test_averages_that_the_file_lacks_are_refused(by_model, tmp_path, capsys):
    assert main(by_model(tmp_path / "out", "use_ema=true", "--limit", "1", "--quiet")) == 2
    assert "tiny.safetensors" in capsys.readouterr().err
    assert main(by_model(tmp_path / "out", "use_ema=perhaps")) == 2
    assert "use_ema: expected true or false" in capsys.readouterr().err
