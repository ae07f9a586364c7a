"""Fixtures of more than one file: the command on a tiny model, its folder, and that it refuses what is wrong."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from sample_condition import main
from tests.runs import words
from tests.tiny import SIDE, write_model, write_pictures


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """Shells start background jobs with Ctrl-C ignored, and a program started from there would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _unflushed():
    """No test takes the machine's power away: files need not reach the disk, for which each would wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _sketched_curves(request):
    """Curves of losses are drawn in modules with `CURVES`, which look at them; elsewhere their numbers stand for them.

    To draw one takes as long as to restore a tiny picture.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(request.module, "CURVES"):
            patch.setattr("ldm_inverse.runs.trace.residual_plot", _sketch)
        yield


def _sketch(trace):
    drawn = [[row[key] for key in ("stage", "iterations", "losses", "target", "noise_floor")] for row in trace]
    return f"<svg>{json.dumps(drawn)}</svg>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, pictures and an inpainting task."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder)
    write_pictures(folder / "pictures", ["a.png", "a.jpg", "b b.png", "sub/c.png"])
    task = {
        "conditioning": {"main_sampler": "resample", "method": "ps"},
        "data": {"name": "ffhq", "root": str(folder / "pictures")},
        "measurement": {
            "operator": {"name": "inpainting"},
            "noise": {"name": "gaussian", "sigma": 0.01},
            "mask_opt": {"mask_type": "random", "mask_prob_range": [0.5, 0.6], "image_size": SIDE},
        },
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A whole run of the command."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main(words(place, out)) == 0
    return out


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """The working folder of the test, in which nothing may appear."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def refused(place, tmp_path, elsewhere, capsys, monkeypatch) -> Callable[..., str]:
    """Run the command with these words added: it must end with status 2, say why in a line or two, write nothing."""
    monkeypatch.setattr("ldm_inverse.runs.restoration.restore", lambda *_, **__: pytest.fail("it was sampled"))

    def refused(*extra: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(words(place, tmp_path / "out", "--quiet", *extra)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert err.count("\n") <= 3
        assert len(err) < 2000
        assert err.replace("\n", "").isprintable()
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return refused
