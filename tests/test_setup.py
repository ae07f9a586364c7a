"""scripts/setup.sh, run with a stand-in for Python, and the files that say what is to be installed."""

import ast
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# A stand-in for Python: writes down what it is asked, says its version, "creates" an environment that holds itself,
# "installs" as $PIP says.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
    *version_info\\[:2\\]*) echo "$VERSION" ;;
    "-m pip --version") [ ! -e "$(dirname "$0")/no-pip" ] ;;
    "-m venv"*)
        [[ "$*" != *--clear* ]] || rm -rf "${@: -1}"
        mkdir -p "${@: -1}/bin"
        cp "$0" "${@: -1}/bin/python"
        ;;
    "-m pip install"*) eval "${PIP:-true}" ;;
esac
"""


class Project:
    """A temporary project that has setup.sh and one-line requirements, and the stand-in as its Python."""

    def __init__(self, root):
        self.root, self.log = root / "a project", root / "log"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.sh", self.root / "scripts")
        self.requirements = self.root / "requirements.txt"
        self.requirements.write_text("torch>=2,<3\ntorchvision\nnumpy\n")
        self.python = root / "fakepython"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def command(self, version="3.12", **env):
        env = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "VERSION": version, "LOG": str(self.log)} | env
        return {"args": ["bash", str(self.root / "scripts" / "setup.sh")], "env": env, "cwd": "/", "text": True}

    def setup(self, **env):
        """Run setup.sh from another folder; return its exit status, stderr and what the stand-in was asked."""
        self.log.write_text("")
        done = subprocess.run(**self.command(**env), capture_output=True, timeout=60)
        return done.returncode, done.stderr, self.log.read_text().splitlines()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def installs(asked):
    return [line.removeprefix("python -m pip ") for line in asked if "-m pip install" in line]


def creations(asked):
    return sum("-m venv" in line for line in asked)


def test_first_run_creates_and_installs_and_the_second_does_nothing(project):
    status, _, asked = project.setup()
    assert status == 0
    assert creations(asked) == 1
    assert installs(asked) == ["install --requirement requirements.txt"]
    status, error, asked = project.setup(PYTHON="/nowhere/python")  # not even asked for
    assert (status, error) == (0, "")
    assert asked == ["python -c "]


def test_changed_requirements_are_installed_into_the_same_environment(project):
    project.setup()
    project.requirements.write_text("numpy>=2\n")
    status, _, asked = project.setup()
    assert status == 0
    assert creations(asked) == 0
    assert installs(asked) == ["install --requirement requirements.txt"]
    assert installs(project.setup()[2]) == []


def test_torch_comes_from_the_index_that_is_named(project):
    status, _, asked = project.setup(TORCH_INDEX_URL="https://example.org/cpu")
    assert status == 0
    assert installs(asked) == [
        "install --index-url https://example.org/cpu --constraint requirements.txt torch torchvision",
        "install --requirement requirements.txt",
    ]


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.9"])
def test_an_old_python_is_named(project, version):
    status, error, asked = project.setup(version=version)
    assert status == 1
    assert f"fakepython' is Python {version}; this project needs Python 3.10 or newer" in error
    assert "PYTHON=" in error
    assert len(error.splitlines()) == 1
    assert creations(asked) == 0
    assert not (project.root / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10", "3.14", "4.0"])
def test_a_recent_python_will_do(project, version):
    assert project.setup(version=version)[0] == 0


def test_no_python_at_all(project):
    status, error, _ = project.setup(PYTHON="/nowhere/python")
    assert status == 1
    assert "cannot run '/nowhere/python'" in error
    assert "3.10" in error


def test_a_failed_install_is_not_taken_as_done_and_is_gone_on_with(project):
    status, error, _ = project.setup(PIP="false")
    assert status == 1
    assert "the installation failed" in error
    status, _, asked = project.setup()
    assert status == 0
    assert creations(asked) == 0
    assert installs(asked) == ["install --requirement requirements.txt"]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_install_begins_again_from_nothing(project, kill):
    project.setup()
    before = project.requirements.read_text()
    project.requirements.write_text("numpy>=2\n")
    # Like pip, this one ends an interruption with an ordinary exit status.
    waiting = project.root / "waiting"
    command = project.command(
        PIP=f"trap 'exit 1' INT TERM; touch .venv/half-a-package '{waiting}'; for i in {{1..600}}; do sleep 0.05; done"
    )
    with subprocess.Popen(**command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not waiting.exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, kill)
    assert process.returncode != 0
    project.requirements.write_text(before)  # going back does not make half an install whole
    status, _, asked = project.setup()
    assert status == 0
    assert creations(asked) == 1
    assert not (project.root / ".venv" / "half-a-package").exists()
    assert installs(asked) == ["install --requirement requirements.txt"]
    assert installs(project.setup()[2]) == []


def test_an_environment_without_pip_is_made_again(project):
    project.setup()
    project.requirements.write_text("numpy\n")
    (project.root / ".venv" / "bin" / "no-pip").touch()
    status, _, asked = project.setup()
    assert status == 0
    assert creations(asked) == 1


def test_an_environment_whose_python_is_gone_is_made_again(project):
    project.setup()
    (project.root / ".venv" / "bin" / "python").unlink()
    status, _, asked = project.setup()
    assert status == 0
    assert creations(asked) == 1


@pytest.mark.slow
def test_a_real_environment(project):
    """With the real Python and nothing to install: the stand-in above is like the real one."""
    project.requirements.write_text("# nothing\n")
    env = {"PYTHON": shutil.which("python3") or "python3"}
    assert subprocess.run(**project.command(**env), timeout=300).returncode == 0
    assert (project.root / ".venv" / "bin" / "python").exists()
    made = (project.root / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
    assert subprocess.run(**project.command(**env), timeout=300).returncode == 0
    assert (project.root / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made


# ---------------------------------------------------------------- the files that say what is needed


def requirements():
    """Requirement lines without comments, by lower-case package name."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return {re.split(r"[<>=!~ ]", line)[0].lower(): line for line in lines if line}


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.txt"], "everything comes from the one list"
    assert plain == ["python>=3.10", "pip"]


def test_one_lowest_python_everywhere():
    assert 'target-version = "py310"' in (ROOT / "pyproject.toml").read_text()
    assert "version_info < (3, 10)" in (ROOT / "scripts" / "setup.sh").read_text()


def test_what_is_installed_meets_the_requirements():
    packaging = pytest.importorskip("packaging.requirements")
    for line in requirements().values():
        requirement = packaging.Requirement(line)
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), line


# Imported only where somebody asks for what they do, and then told in a line when absent.
EXTRAS = {
    "deepinv",
    "gradio",
    "huggingface_hub",
    "pillow_avif",
    "pillow_heif",
    "pydicom",
    "starlette",
    "tokenizers",
    "transformers",
}


def test_every_import_is_required():
    """Each outside package that the code imports is in requirements.txt, or an extra."""
    module_of = {"pyyaml": "yaml", "pillow": "PIL", "scikit-image": "skimage", "torch-fidelity": "torch_fidelity"}
    known = {module_of.get(name, name) for name in requirements()} | set(sys.stdlib_module_names)
    known |= (
        EXTRAS | {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    )
    folders = [ROOT / name for name in ("data", "ldm", "ldm_inverse", "scripts", "tests", "util")]
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            unknown = {name.split(".")[0] for name in names} - known
            assert not unknown, f"{path.relative_to(ROOT)} imports {unknown}"


def test_citation_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["title"].startswith("Solving Inverse Problems with Latent Diffusion Models")
    assert len(citation["preferred-citation"]["authors"]) == 6
    assert citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
