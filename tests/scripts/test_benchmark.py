"""The benchmark: its rows, its ratios, and that the plain rendering computes the same thing."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from ldm.acceleration.arithmetic import Arithmetic
from ldm.acceleration.products import product
from ldm.modules.attention import AttentionBlock
from ldm_inverse.solvers.problem import mean_squared_residual
from scripts import benchmark
from scripts.benchmarks import demo, measure, modes, published, report
from scripts.benchmarks.parts import MEASURED_OPERATOR, as_told
from scripts.benchmarks.restorations import preset_solver
from tests.reference.recorded import relative_error
from tests.tiny import CONFIG, SIDE, family, write_model

CPU = torch.device("cpu")
NETWORK_PARTS = ["UNet forward", "decoder forward", "latent iteration", "sampling step", "time travel"]


def test_some_parts_can_be_timed_alone(tmp_path, capsys):
    assert list(benchmark.PARTS) == NETWORK_PARTS
    config, _ = write_model(tmp_path)
    words = ["--config", str(config), "--repeats", "1", "--device", "cpu", "--threads", str(torch.get_num_threads())]
    words += ["--precision", "fp32", "--parts", "UNet forward", "--out", str(tmp_path / "out")]
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "out/benchmark.json").read_text())["rows"]
    assert [(row["part"], row["mode"]) for row in rows] == [
        ("UNet forward", "fp32"),
        ("UNet forward", "fp32, low memory"),
    ]
    assert (tmp_path / "out/benchmark.md").read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_has_every_row(tmp_path, capsys):
    config, _ = write_model(tmp_path)
    words = ["--config", str(config), "--repeats", "1", "--device", "cpu", "--threads", str(torch.get_num_threads())]
    assert benchmark.main([*words, "--precision", "fp32", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    networks = [(part, mode) for part in NETWORK_PARTS for mode in ("fp32", "fp32, low memory")]
    pixels = [(f"pixel iteration, {name}", "fp32") for name in modes.OPERATORS]
    loading = [("checkpoint load", ""), ("reading the checkpoint's bytes", "")]
    memory = [("peak memory", "fp32"), ("peak memory", "fp32, low memory")]
    assert [(row["part"], row["mode"]) for row in found["rows"]] == networks + pixels + loading + memory
    assert all(row["value"] > 0 for row in found["rows"])
    for row in found["rows"]:
        if row["plain"] is not None:
            assert row["ratio"] == pytest.approx(row["plain"] / row["value"])
        if row["part"] in NETWORK_PARTS:
            assert 0 < row["fraction"] < 1.5
    table = (tmp_path / "out/benchmark.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n| ") == len(found["rows"]) + 2
    assert found["threads"] == torch.get_num_threads()


def test_ratios_are_of_medians_over_rounds_in_turn():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in ("plain", "fp32")}
    times = iter([9, 9, 2, 1, 40, 20, 6, 2, 4, 2, 4, 30])  # the first pair does not count

    def clock(run):
        run()
        return next(times)

    medians = measure.interleaved_medians(runs, 5, clock)
    assert order == ["plain", "fp32"] * 6
    assert medians == {"plain": 4, "fp32": 2}
    (row,) = report.rows_of("part", medians, "plain", "s", flop={"fp32": 300}, attainable={"fp32": 200.0})
    assert (row.ratio, row.fraction) == (2.0, 0.75)


@pytest.mark.parametrize("name", modes.OPERATORS)
def test_the_plain_rendering_measures_and_optimises_the_same(name):
    model = modes.build_model(CONFIG, modes.build_state(CONFIG), CPU)
    ours = modes.make_subject(model, Arithmetic(), name, SIDE)
    plain = modes.make_subject(model, None, name, SIDE)
    operator, problem = plain.plain_operator(), ours.problem()
    assert relative_error(operator(plain.image).detach(), problem.operator_fn(ours.image)) < 1e-5
    found = modes.pixel_iterations(ours)().x
    assert relative_error(found, modes.pixel_iterations(plain)()) < 1e-3
    before, after = (
        mean_squared_residual(problem.measurement, problem.operator_fn(x)) for x in (torch.zeros_like(found), found)
    )
    assert after < before


def test_the_plain_latent_iteration_is_the_same():
    model = modes.build_model(CONFIG, modes.build_state(CONFIG), CPU)
    parts = [modes.network_parts(modes.make_subject(model, way, "gaussian_blur", SIDE)) for way in (Arithmetic(), None)]
    assert list(parts[0]) == list(parts[1]) == NETWORK_PARTS
    ours, plain = (part["latent iteration"]() for part in parts)
    # AdamW's first step is the sign of the gradient, which rounding decides where that is next to nothing.
    assert ((ours.x - plain).abs() < 1e-5).float().mean() > 0.99


def test_the_plain_unet_attends_by_another_way_to_the_same():
    state, found = modes.build_state(CONFIG), []
    for way in (Arithmetic(), None):
        subject = modes.make_subject(modes.build_model(CONFIG, state, CPU), way, "gaussian_blur", SIDE)
        kinds = {type(module) for module in subject.model.modules()}
        assert (published.TableAttention in kinds, AttentionBlock in kinds) == (way is None, way is not None)
        found.append(modes.network_parts(subject)["UNet forward"]())
    assert found[0].abs().max() > 0
    assert relative_error(*found) < 1e-5


def test_the_plain_kernels_ask_for_gradients_and_ours_do_not():
    model = modes.build_model(CONFIG, modes.build_state(CONFIG), CPU)
    plain = modes.make_subject(model, None, "gaussian_blur", SIDE)
    operator = plain.plain_operator()
    published.pixel_iterations(operator, plain.measurement.y, plain.image, 1)
    assert operator.conv.weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in plain.task.operator.parameters())


@pytest.mark.slow
def test_cost_by_size_is_relative_to_the_first(tmp_path, capsys):
    config, _ = write_model(tmp_path)
    words = ["--config", str(config), "--repeats", "1", "--device", "cpu", "--threads", str(torch.get_num_threads())]
    words += ["--sizes", str(SIDE), str(2 * SIDE), "--batches", "1", "2", "--out", str(tmp_path / "out")]
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "out/sizes.json").read_text())["rows"]
    assert [(row["side"], row["batch"]) for row in rows] == [(a * SIDE, b) for a in (1, 2) for b in (1, 2)]
    assert rows[0]["UNet per pixel"] == 1
    first, last = rows[0], rows[3]
    assert last["latent per pixel"] == pytest.approx(last["latent iteration"] / first["latent iteration"] / 8)
    assert all(row["MB"] > 1 for row in rows)
    assert (tmp_path / "out/sizes.md").read_text() in capsys.readouterr().out


def test_operations_are_counted_through_the_gradient():
    weight, x = torch.randn(8, 4, 3, 3), torch.randn(1, 4, 16, 16).requires_grad_()
    forward = 2 * 8 * 4 * 9 * 14 * 14
    assert measure.count_flop(lambda: torch.nn.functional.conv2d(x, weight)) == forward

    def with_gradient():
        torch.autograd.grad(torch.nn.functional.conv2d(x, weight).sum(), x)

    assert measure.count_flop(with_gradient) == 2 * forward
    assert measure.count_flop(lambda: product(torch.randn(3, 4), torch.randn(4, 5))) == 2 * 3 * 4 * 5


def test_what_a_device_has_not_is_left_out_unless_asked_for(capsys):
    assert "tf32" not in modes.modes(CPU, None, False)
    assert {"fp32", "fp32, low memory"} <= modes.modes(CPU, None, False).keys()
    assert "fp32, compiled" in modes.modes(CPU, ["fp32"], True)
    assert benchmark.main(["--precision", "tf32", "--device", "cpu"]) == 2
    assert "tf32" in capsys.readouterr().err


def test_shortened_factors_are_used_in_their_own_mode_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    runs = [as_told(how, lambda: torch.backends.cudnn.allow_tf32) for how in (None, Arithmetic("tf32"), Arithmetic())]
    assert [run() for run in (*runs, *runs)] == [False, True, False] * 2


@pytest.mark.slow
def test_whole_restorations_in_every_mode(tmp_path, capsys):
    config, _ = write_model(tmp_path)
    words = ["--config", str(config), "--repeats", "1", "--device", "cpu", "--threads", str(torch.get_num_threads())]
    words += ["--restorations", "fastest", "fast", "--precision", "fp32", "--out", str(tmp_path / "out")]
    words += ["--operator", "super_resolution", "--", "ddim_steps=4"]
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "out/restorations.json").read_text())["rows"]
    assert [(row["part"], row["mode"], row["unit"]) for row in rows] == [
        (f"{preset}, {SIDE}x{SIDE}{what}", "fp32", unit)
        for preset in ("fastest", "fast")
        for what, unit in (("", "s"), (", peak memory", "MB"))
    ]
    assert all(row["value"] > 0 and row["plain"] > 0 for row in rows)
    assert (tmp_path / "out/restorations.md").read_text() in capsys.readouterr().out


def test_restorations_have_what_a_preset_says_for_the_operator_and_what_the_command_line_says():
    assert preset_solver("fastest", "gaussian_blur").settings.pixel.correlation == 0.5
    solver = preset_solver("fastest", "super_resolution", ["ddim_steps=4", "conditioning.resample.pixel.max_iters=7"])
    assert (solver.steps, solver.settings.pixel.max_iters, solver.settings.pixel.correlation) == (4, 7, 1.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ddim_steps=3"], "settings are for the presets of --demo and --restorations"),
        (["--operator", "inpainting"], "--operator is for the presets of --restorations"),
        (["--demo", "demo", "--operator", "inpainting"], "--operator is for the presets of --restorations"),
        (["--restorations", "fast", "--", "conditioning.resample.piksel=1"], "piksel"),
        (["--restorations", "fast", "--", "measurement.operator.scale_factor=8"], "has no effect on restorations"),
        (["--restorations", "fast", "--", "conditioning.main_sampler=dps"], "has no effect on restorations"),
    ],
)
def test_words_that_nothing_reads_are_refused(words, said, capsys):
    assert benchmark.main(["--device", "cpu", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_operators_of_the_help_are_those_that_are_timed():
    assert {*benchmark.OPERATORS} == {*modes.OPERATORS}
    assert benchmark.OPERATORS[0] == MEASURED_OPERATOR


def test_presets_that_no_restoration_is_timed_by(tmp_path, capsys):
    none = tmp_path / "none.yaml"
    none.write_text("ddim_steps: 5\n")
    for preset, said in (("fastet", "fastest"), (str(none), "no conditioning.resample")):
        assert benchmark.main(["--restorations", preset, "--device", "cpu"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["grey", "classes"])
def test_models_that_are_not_timed_are_refused_in_a_line(kind, tmp_path, capsys):
    if kind == "grey":
        stage = {"target": "ldm.models.autoencoder.AutoencoderKL"}
        config = family(first_stage={**stage, "ddconfig": {"double_z": True, "in_channels": 1, "out_ch": 1}})
    else:
        embedder = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"n_classes": 4, "embed_dim": 8}}
        config = family({"use_spatial_transformer": True, "context_dim": 8}, cond_stage_config=embedder)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    assert benchmark.main(["--config", str(tmp_path / "model.yaml"), "--device", "cpu"]) == 2
    assert "only unconditional models of colour pictures are timed" in capsys.readouterr().err


def test_presets_are_timed_by_the_command_itself(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(command)
        folder = Path(commands[-1][commands[-1].index("--save_dir") + 1])
        folder.mkdir(parents=True)
        columns = ("image", *demo.COLUMNS)
        rows = [("a", 2.0, 20, 0.5, 10, 0.1), ("b", 4.0, 30, 0.7, 12, 0.3)]
        with open(folder / "metrics.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        return 0

    monkeypatch.setattr(demo.restoring, "restore", run)
    words = ["--demo", "demo", "paper", "--tasks", "one.yaml", "two.yaml", "--out", str(tmp_path), "--", "ddim_steps=3"]
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "demo.json").read_text())
    assert [(row["task"], row["preset"]) for row in rows] == [
        (task, preset) for task in ("one", "two") for preset in ("demo", "paper")
    ]
    assert rows[0]["seconds"] == 3.0
    assert rows[0]["psnr"] == 25
    assert "| one | demo | 3.00 | 25.00 | 0.600 |" in (tmp_path / "demo.md").read_text()
    assert all("ddim_steps=3" in command for command in commands)
    capsys.readouterr()
