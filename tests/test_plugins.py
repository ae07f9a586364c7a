"""Files of a person's own code: the example in docs/OPERATORS.md, used as it stands there, and broken ones."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from ldm_inverse.operators import OPERATORS
from ldm_inverse.solvers.samplers import POSTERIOR_SAMPLERS
from sample_condition import main
from scripts import check_operator
from tests.runs import words

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "OPERATORS.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The page's Python blocks as one file, and its task."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "my_operators.py").write_text("\n".join(blocks("python")))
    (task,) = blocks("yaml")
    (folder / "my_task.yaml").write_text(task)
    return folder


SAMPLER = """
from ldm_inverse.solvers.registry import register_sampler
from ldm_inverse.solvers.settings import SamplerSettings
from util.settings import Positive


class MySettings(SamplerSettings):
    shrink: Positive = 1.0


@register_sampler("mine", settings=MySettings)
def sample_mine(prior, problem, z, settings, run):
    for step, index in run.steps():
        z, x0, _ = prior.ddim_step(z, index)
        z = z / settings.shrink
        run.stepped(step)
        run.finished(step, z, x0)
    return z
"""


def test_a_plugins_sampler_has_settings_of_its_own(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(POSTERIOR_SAMPLERS, "_entries", dict(POSTERIOR_SAMPLERS._entries))
    plugin = tmp_path / "sampler.py"
    plugin.write_text(SAMPLER)
    given = ["--plugin", str(plugin), "--limit", "1", "conditioning.main_sampler=mine"]
    for out, more in (("plain", []), ("shrunk", ["conditioning.mine.shrink=2"])):
        assert main(words(place, tmp_path / out, *given, *more)) == 0
    recorded = yaml.safe_load((tmp_path / "shrunk" / "settings.yaml").read_text())["settings"]
    assert recorded["conditioning"]["mine"] == {"refine": None, "shrink": 2.0}
    pictures = [(tmp_path / out / "recon" / "a_jpg.png").read_bytes() for out in ("plain", "shrunk")]
    assert pictures[0] != pictures[1]
    capsys.readouterr()
    assert main(words(place, tmp_path / "bad", *given, "conditioning.mine.shrnk=2")) == 2
    assert "unknown setting of conditioning.mine 'shrnk': did you mean 'shrink'?" in capsys.readouterr().err
    assert main(words(place, tmp_path / "bad", *given, "--preset", "fastest")) == 2
    assert "made for resample, and main_sampler is mine: leave --preset out" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


NAMES = re.findall(r'@register_operator\(name="(\w+)"\)', PAGE)


def test_the_page_has_a_linear_a_nonlinear_and_a_random_operator():
    assert NAMES == ["mosaic", "saturation", "dead_columns"]


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_operators_hold_all_properties(name, example, capsys):
    assert check_operator.main([f"{example / 'my_operators.py'}:{name}"]) == 0
    out = capsys.readouterr().out
    assert "FAILS" not in out
    assert "all properties hold" in out


def test_the_page_lists_every_property():
    from ldm_inverse.properties import PROPERTIES

    table = PAGE.partition("## What is checked")[2]
    assert all(f"| {name.replace('_', ' ')} |" in table for name in PROPERTIES)


def test_the_pages_task_is_restored_by_its_plugin_and_again_from_the_run(example, place, tmp_path):
    plugin = example / "my_operators.py"
    extra = ["--plugin", str(plugin), "--task_config", str(example / "my_task.yaml"), "--limit", "1"]
    more = ["--data", str(place / "pictures"), "data.name=mirrored", "conditioning.method=bounded_ps"]
    assert main(words(place, tmp_path / "out", *extra, *more, steps=2)) == 0
    saved = load_file(tmp_path / "out" / "label" / "a_jpg.safetensors")
    columns = saved["mask"][0, 0]
    assert (columns == columns[:1]).all()
    assert 0 < columns.mean() < 1
    truth, source = (
        np.asarray(Image.open(path)) for path in (tmp_path / "out/input/a_jpg.png", place / "pictures/a.jpg")
    )
    assert np.array_equal(truth, source[:, ::-1])
    record = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())
    assert record["run"]["plugin"] == [str(plugin)]
    assert len(record["plugins"]["sha256"][0]) == 64
    again = ["--from", str(tmp_path / "out"), "--plugin", str(plugin), "--save_dir", str(tmp_path / "again")]
    assert main(again) == 0
    for path in ("recon/a_jpg.png", "label/a_jpg.safetensors"):
        assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "again" / path).read_bytes()


def test_the_pages_noise_joins_any_task(example, place, tmp_path):
    (tmp_path / "task.yaml").write_text(
        "measurement: {operator: {name: noise}, noise: {name: speckle, deviation: 0.5}}\n"
        f"data: {{root: '{place / 'pictures'}'}}"
    )
    extra = ["--plugin", str(example / "my_operators.py"), "--task_config", str(tmp_path / "task.yaml")]
    assert main(words(place, tmp_path / "out", *extra, "--limit", "1", steps=1)) == 0
    y = load_file(tmp_path / "out" / "label" / "a_jpg.safetensors")["y"][0].permute(1, 2, 0)
    truth = np.asarray(Image.open(tmp_path / "out" / "input" / "a_jpg.png")) / 127.5 - 1
    assert (y.numpy() / truth).std() == pytest.approx(0.5, rel=0.1)


BROKEN = {
    "not there": (None, "cannot be read: No such file"),
    "not Python": ("def f(:\n", "line 1: SyntaxError"),
    "null bytes": ("a = '\0'", "SyntaxError"),
    "raises": ("x = 1\n\ndef f():\n    return x / 0\n\nf()", "line 4, in f: ZeroDivisionError: division by zero"),
    "wants what is not there": ("import nothing_of_the_kind", "line 1, in <module>: ModuleNotFoundError"),
    "leaves": ("import sys\nsys.exit(0)", "line 2, in <module>: SystemExit: 0"),
    "a name that is taken": (
        "from ldm_inverse.measurements import Operator, register_operator\nregister_operator('noise')(Operator)",
        "line 2, in <module>: ValueError: operator 'noise' is already registered",
    ),
    "many lines": ("raise ValueError('a\\nb\\x1b[2J' * 9999)", "ValueError: a b"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_cannot_be_loaded_is_refused_in_a_line(name, refused, tmp_path):
    content, told = BROKEN[name]
    if content is not None:
        (tmp_path / "own.py").write_text(content)
    err = refused("--plugin", str(tmp_path / "own.py"))
    assert f"--plugin {tmp_path / 'own.py'}" in err
    assert told in err


FAILING = """
from ldm_inverse.measurements import Operator, register_operator

@register_operator("failing_{when}")
class Failing(Operator):
    def __init__(self):
        super().__init__()
        if "{when}" == "built":
            self.missing
    def forward(self, x):
        return x.reshape(7, -1)
"""


NO_OPERATOR = """
from torch import nn
from ldm_inverse.measurements import Operator, register_operator

@register_operator("no_{kind}")
def make():
    return {value}

class Returns(Operator):
    def forward(self, x):
        return None

class Gives(Operator):
    def __init__(self, function, state=()):
        super().__init__()
        self.function, self.state = function, dict(state) if state == () else state
    def draw(self, shape, rng):
        return self.state
    def forward(self, x):
        return self.function(x)
"""


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (
            "nothing",
            "None",
            "operator 'no_nothing' is not an ldm_inverse.measurements.Operator: its code returned None",
        ),
        ("module", "nn.Identity()", "is not an ldm_inverse.measurements.Operator: its code returned a Identity"),
        ("tensor", "Returns()", "operator Returns: forward returned None, not a tensor"),
        ("float", "Gives(lambda x: x.int())", "forward returned torch.int32 numbers for images in torch.float32"),
        (
            "batch",
            "Gives(lambda x: x.mean())",
            "forward returned shape () for images of (1, 3, 32, 32): the first dimension",
        ),
        ("shape", "Gives(lambda x: x[:0])", "forward returned shape (0, 3, 32, 32) for images of"),
        ("gradient", "Gives(lambda x: x.detach())", "forward returned a tensor without a gradient to the image"),
        ("draw", "Gives(lambda x: x, None)", "operator Gives: draw returned None, not a dictionary of tensors"),
        ("state", "Gives(lambda x: x, {'a': 1})", "operator Gives: draw returned other things, not a dictionary"),
    ],
)
def test_what_is_no_operator_is_told_in_a_line(kind, value, told, place, tmp_path, capsys):
    (tmp_path / "own.py").write_text(NO_OPERATOR.format(kind=kind, value=value))
    (tmp_path / "task.yaml").write_text(f"measurement: {{operator: {{name: no_{kind}}}}}")
    extra = ["--plugin", str(tmp_path / "own.py"), "--task_config", str(tmp_path / "task.yaml")]
    assert main(words(place, tmp_path / "out", *extra, "--data", str(place / "pictures"), "--quiet")) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("when", "line"), [("built", "line 9, in __init__: "), ("used", "line 11, in forward: ")])
def test_what_a_plugins_code_raises_later_is_told_in_a_line(when, line, place, tmp_path, capsys):
    (tmp_path / "own.py").write_text(FAILING.format(when=when))
    extra = ["--plugin", str(tmp_path / "own.py"), "measurement.mask_opt={}"]
    (tmp_path / "task.yaml").write_text(f"measurement: {{operator: {{name: failing_{when}}}}}")
    extra = [*extra[:2], "--task_config", str(tmp_path / "task.yaml"), "--data", str(place / "pictures"), "--quiet"]
    assert main(words(place, tmp_path / "out", *extra)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --plugin {tmp_path / 'own.py'}, {line}")
    assert err.count("\n") == 1
    assert main(words(place, tmp_path / "out", *extra, "--debug")) == 2
    assert "Traceback" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_repeated_only_with_the_plugin_it_had(place, tmp_path, capsys):
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text(
        "from ldm_inverse.operators.identity import *\nOPERATORS.register('own')(type('Own', (Identity,), {}))"
    )
    (tmp_path / "task.yaml").write_text("measurement: {operator: {name: own}}")
    extra = ["--plugin", str(own), "--task_config", str(tmp_path / "task.yaml"), "--data", str(place / "pictures")]
    assert main(words(place, run, *extra, "--limit", "1", steps=1)) == 0
    unasked = ["--from", str(run), "--save_dir", str(tmp_path / "again")]
    capsys.readouterr()
    assert main(unasked) == 2  # a folder's code is not run because the folder says so
    assert f"to run it again, add --plugin {own}" in capsys.readouterr().err
    again = [*unasked, "--plugin", str(own)]
    own.write_text(own.read_text() + "\n")
    assert main(again) == 2
    assert "own.py has changed since the run" in capsys.readouterr().err
    own.unlink()
    assert main(again) == 2
    assert "own.py: cannot be read: No such file" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_check_operator_says_what_is_missing(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text(
        "from ldm_inverse.measurements import Operator, register_operator\n"
        "@register_operator('half')\n"
        "class Half(Operator):\n"
        "    def __init__(self, gain: float = 0.5):\n"
        "        super().__init__()\n"
        "        self.gain = gain\n"
        "    def forward(self, x):\n"
        "        return x.float() * self.gain\n"
    )
    assert check_operator.main([f"{own}:half", "gain=0.25"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"FAILS +dtype .*torch.float32", out)
    assert re.search(r"ok +determinism", out)
    assert "{'gain': 0.25}" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["nowhere.py:a"], "nowhere.py: cannot be read"),
        (["nowhere.py"], "nowhere.py:NAME"),
        (["inpaintin"], "did you mean 'inpainting'"),
        (["motion_blur", "kernel_size=4"], "an odd number"),
        (["motion_blur", "kernel_size"], "key=value"),
        ([], "FILE"),
    ],
)
def test_check_operator_refuses_in_a_line(given, told, capsys):
    assert check_operator.main(given) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_check_operator_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_operator.py", "super_resolution", "scale_factor=2"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all properties hold" in done.stdout
    assert "super_resolution" in OPERATORS.names()
