"""The programs on a card, which `tests.card` pretends: no tensor may stay behind on the processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sample_condition import main
from tests.card import REAL
from tests.runs import names, pixels, table, words
from tests.tiny import training_config

ROOT = Path(__file__).resolve().parents[1]
FEW = ["--limit", "1", "--threads", "1", "--seed", "0"]
OPERATORS = [
    {"name": "super_resolution", "scale_factor": 2},
    {"name": "gaussian_blur", "kernel_size": 9, "intensity": 1.0},
    {"name": "motion_blur", "kernel_size": 9, "intensity": 0.5},
    {"name": "phase_retrieval", "oversample": 2.0},
    {"name": "jpeg", "quality": 50},
    {"name": "tomography", "angles": 8},
]


def run_on_card(*commands, status=0):
    """Run programs in a process of their own, as a device once registered stays; return the lines that they print."""
    listed = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-m", "tests.card", listed],
        cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines()


MIXED = """
import torch
from tests.card import CardGenerator, card

x = torch.ones(3).to(card())
print((x + 1).sum().item())
for mixed in (
    lambda: x + torch.ones(3),
    lambda: torch.randn(3, device=card(), generator=torch.Generator()),
):
    try:
        mixed()
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(REAL is not None, reason="of the pretended card")
def test_tensors_of_card_and_processor_do_not_mix():
    done = subprocess.run([sys.executable, "-c", MIXED], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "6.0",
        "aten.add.Tensor: a tensor on the card meets one on the cpu",
        "aten.normal_.default: a generator of the processor draws on the card",
    ]


def test_recorded_values_on_a_card():
    *values, about, _ = run_on_card(["tests.reference.on_card", "networks", "operators"])
    assert about.startswith(f"{len(values)} of {len(values)} right")
    assert len(values) > 15


@pytest.mark.skipif(REAL is not None, reason="a real card's noise is another")
def test_restorations_on_a_card_are_those_of_the_processor(place, tmp_path):
    """By every stage of the published setting, and with the presets' refinement."""
    runs = {"published": [], "refined": ["conditioning.resample.refine={}"]}
    for name, more in runs.items():
        assert main(words(place, tmp_path / "cpu" / name, *FEW, *more)) == 0
    run_on_card(
        *(["sample_condition", *words(place, tmp_path / "card" / name, *FEW, *more)] for name, more in runs.items())
    )
    for name in runs:
        for picture in names(tmp_path / "cpu" / name / "recon"):
            at = Path(name) / "recon" / f"{picture}.png"
            apart = np.abs(pixels(tmp_path / "card" / at).astype(int) - pixels(tmp_path / "cpu" / at))
            assert apart.max() <= 1, at


@pytest.mark.parametrize("sampler", ["dps", "psld", "sitcom"])
def test_solvers_on_a_card(place, tmp_path, sampler):
    run_on_card(
        ["sample_condition", *words(place, tmp_path / "out", *FEW, f"conditioning.main_sampler={sampler}", steps=2)]
    )


def test_operators_go_with_the_model(place, tmp_path):
    runs = []
    for operator in OPERATORS:
        name = operator["name"]
        task = {
            "conditioning": {"main_sampler": "resample"},
            "data": {"name": "ffhq", "root": str(place / "pictures")},
            "measurement": {"operator": operator, "noise": {"name": "gaussian", "sigma": 0.01}},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
        refined = "conditioning.resample.refine={}"
        given = words(place, tmp_path / name, *FEW, refined, "--task_config", str(tmp_path / f"{name}.yaml"), steps=2)
        runs.append(["sample_condition", *given])
    run_on_card(*runs)


def test_training_on_a_card_goes_on_there(place, tmp_path):
    config, first = training_config(tmp_path), tmp_path / "first"
    common = ["scripts.train", "--config", config, "--data", place / "pictures", "--threads", 1]
    prior = ["--stage", "diffusion", "--out", tmp_path / "prior", "--first_stage", first / "weights.safetensors"]
    stages = [["--stage", "autoencoder", "--out", first], prior]
    run_on_card(*([*common, *stage, "--max_steps", steps] for stage in stages for steps in (2, 3)))
    assert (tmp_path / "prior" / "log.csv").read_text().splitlines()[-1].startswith("3,")


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
def test_sampling_on_a_card(place, tmp_path, sampler):
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors"]
    run_on_card(["scripts.sample", *model, "--sampler", sampler, "--steps", 3, "--n", 2, "--save_dir", tmp_path / "s"])
    assert len(list((tmp_path / "s" / "samples").glob("*.png"))) == 2


@pytest.mark.skipif(REAL is not None, reason="of the pretended card")
def test_constants_stay_on_the_card(place, tmp_path):
    """Two pictures of motion deblur: the weights, and a copy each way for each pass of the Wiener filter; what is read
    is a number for each iteration of conjugate gradients, which its rule needs, and a few for each stage."""
    task = tmp_path / "motion.yaml"
    operator = {"name": "motion_blur", "kernel_size": 9}
    task.write_text(
        yaml.safe_dump({"measurement": {"operator": operator, "noise": {"name": "gaussian", "sigma": 0.01}}})
    )
    given = ["--task_config", str(task), "--data", str(place / "pictures"), "--preset", "fastest", "--limit", "2"]
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors", "--threads", "1"]
    traffic = json.loads(run_on_card(["sample_condition", *model, *given, "--save_dir", tmp_path / "out"])[-1])
    assert 259 < traffic["to"] < 420
    assert 0 < traffic["back"] < 150
    traces = [row for trace in (tmp_path / "out").glob("progress/*/trace.csv") for row in table(trace.read_text())]
    iterations = [int(row["iterations"]) for row in traces if row["stage"] == "pixel"]
    assert len(iterations) == 10
    assert sum(iterations) < traffic["read"] < sum(iterations) + 10 * len(iterations)


def test_a_model_is_checked_on_a_card(place, tmp_path):
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors"]
    few = ["--limit", 2, "--samples", 2, "--steps", 2, "--data", place / "pictures", "--save_dir", tmp_path]
    said = run_on_card(["scripts.check_model", *model, *few], status=1)  # its weights are random
    assert any(line.startswith("verdict: not right") for line in said)


def test_runs_are_measured_on_a_card(place, finished, tmp_path):
    pytest.importorskip("lpips")
    from torchvision.models import alexnet

    torch.save(alexnet(weights=None).half().state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    run_on_card(
        ["scripts.evaluate", finished, "--lpips", "alex", "--weights", tmp_path, "--save_dir", tmp_path / "out"]
    )
    rows = table((tmp_path / "out" / "images.csv").read_text())
    assert all(float(row["lpips_alex"]) > 0 for row in rows)


def test_the_benchmark_on_a_card(place, tmp_path):
    small = ["--config", place / "tiny.yaml", "--precision", "fp32", "--repeats", 1, "--threads", 1, "--out", tmp_path]
    run_on_card(
        ["scripts.benchmark", *small, "--side", 32],
        ["scripts.benchmark", *small, "--side", 32, "--restorations", "fastest"],
        ["scripts.benchmark", *small, "--sizes", 32, "--batches", 1],
    )
    assert {path.name for path in tmp_path.glob("*.md")} == {"benchmark.md", "restorations.md", "sizes.md"}
