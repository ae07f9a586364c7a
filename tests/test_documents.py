"""The commands that the documents show are run; slow tests run them as they stand there.

A block of commands is run when a comment stands before it: `<!-- runs -->`, or `<!-- runs with: WORDS -->`, which adds
words to each of its commands (to look only, or to make it short). The blocks of a document share a folder, in their
order, as a reader would run them. Before a table, `<!-- rows run: COMMAND -->` runs the command for each row, with what
stands in the row's first cell added. The quick tests take few steps.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- (?P<slow>slow )?runs(?: with: (?P<words>[^>]+?))? -->\n+(?P<block>(?:    [^\n]*\n|\n)+)")
ROWS = re.compile(r"<!-- rows run: (?P<command>[^>]+?) -->\n+(?P<table>(?:\|[^\n]*\n)+)")
# Three steps of one iteration each.
STAGES = ("latent", "final", "refine")
SHORT = " ".join(["ddim_steps=3", *(f"conditioning.resample.{stage}.max_iters=1" for stage in STAGES)])
PROGRAMS = ("sample_condition.py", "model_loader.py", "ldm", "ldm_inverse", "util", "scripts", "configs", "models/demo")


def commands(document: str, slow: bool) -> list[str]:
    """Return the marked commands of a document, with what is added to each."""
    found = []
    for mark in MARK.finditer((ROOT / document).read_text()):
        if bool(mark["slow"]) == slow:
            lines = mark["block"].replace("\\\n", " ").splitlines()
            bare = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
            found += [_with(line, mark["words"] or "") for line in bare if line]
    return found


def rows(document: str) -> list[str]:
    """Return the commands that a document's marked tables stand for: a row each, without the heading."""
    return [
        f"{table['command']} {line.split('`')[1]}"
        for table in ROWS.finditer((ROOT / document).read_text())
        for line in table["table"].splitlines()[2:]
    ]


def _with(line: str, words: str) -> str:
    """Add words to a command, before the `--` that begins what it hands on."""
    own, dashes, handed_on = line.partition(" -- ")
    return " ".join(f"{own} {words}{dashes}{handed_on}".split())


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The project as a reader has it, with a single face and a single photograph, so that commands are quick."""
    place = tmp_path_factory.mktemp("clone")
    for name in PROGRAMS:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).symlink_to(ROOT / name)
    (place / "data").mkdir()
    for source in (ROOT / "data").glob("*.py"):
        (place / "data" / source.name).symlink_to(source)
    # The operator of one's own that the README shows.
    (place / "my_operators.py").write_text((ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0])
    (place / "data/own").symlink_to(ROOT / "data/own")
    for folder in ("demo", "samples"):
        (place / "data" / folder).mkdir()
        picture = min((ROOT / "data" / folder).glob("*.png"))
        shutil.copy(picture, place / "data" / folder)
    return place


def run_as_it_stands(command: str, clone: Path) -> None:
    """Run a command in the shell, with this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", command], cwd=clone, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{command}\n{run.stderr}"


def run_here(command: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of Python in this process, by few steps; one of another program, or with a plugin, outside."""
    python, program, *words = shlex.split(command)
    if python != "python" or any("my_operators" in word for word in words):
        run_as_it_stands(_with(command, SHORT) if "sample_condition.py" in command else command, clone)
        return
    restores = program == "sample_condition.py" and not {"--dry_run", "--from"} & {*words}
    monkeypatch.chdir(clone)
    main = importlib.import_module(program.removesuffix(".py").replace("/", ".")).main
    assert main([*words, *(SHORT.split() if restores else ())]) == 0, command


def test_the_readmes_commands_run(clone, monkeypatch):
    marked = commands("README.md", slow=False)
    assert len(marked) > 10
    for command in marked:
        run_here(command, clone, monkeypatch)


@pytest.mark.parametrize(("document", "least"), [("README.md", 5), ("docs/OPTIONS.md", 20)])
def test_the_settings_of_a_documents_tables_are_settings(document, least, clone, monkeypatch):
    marked = rows(document)
    assert len(marked) >= least
    for command in marked:
        run_here(command, clone, monkeypatch)


@pytest.mark.parametrize("document", ["docs/MODELS.md", "docs/OPTIONS.md", "docs/PERFORMANCE.md"])
def test_the_commands_of_a_page_run(document, clone):
    marked = commands(document, slow=False)
    assert marked
    for command in marked:
        run_as_it_stands(command, clone)


def test_the_preset_that_is_shown_is_accepted(clone, monkeypatch, capsys):
    shown = (ROOT / "docs/OPTIONS.md").read_text().split("```yaml\n")[1].split("```")[0]
    (clone / "own.yaml").write_text(shown)
    task = "configs/tasks/demo/gaussian_deblur.yaml"
    line = f"python sample_condition.py --model models/demo --task_config {task} --data data/demo --preset own.yaml"
    run_here(line + " --dry_run", clone, monkeypatch)
    out = capsys.readouterr().out
    assert "main_sampler: dps" in out
    assert "scale: 1.0" in out


@pytest.mark.slow
def test_the_readmes_commands_run_as_they_stand(clone):
    shutil.rmtree(clone / "results", ignore_errors=True)  # by fewer steps
    for command in [*commands("README.md", slow=False), *commands("README.md", slow=True)]:
        run_as_it_stands(command, clone)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["docs/MODELS.md", "docs/PERFORMANCE.md"])
def test_the_long_commands_of_a_page_run_as_they_stand(document, clone):
    marked = commands(document, slow=True)
    assert marked
    for command in marked:
        run_as_it_stands(command, clone)


@pytest.mark.parametrize("document", ["docs/LIBRARY.md"])
def test_the_python_of_a_document_runs(document, clone):
    """Its blocks, one after the other, are a program; the library's restoration is better than its first guess."""
    blocks = re.findall(r"```python\n(.+?)```", (ROOT / document).read_text(), re.DOTALL)
    closer = "assert (restored - image).square().mean() < 0.9 * (guess - image).square().mean()"
    program = "\n".join([*blocks, "assert restored.shape == image.shape", closer])
    run = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_library_example_has_twelve_lines_or_fewer():
    block = (ROOT / "docs/LIBRARY.md").read_text().split("```python\n")[1].split("```")[0]
    assert sum(1 for line in block.splitlines() if line and not line.startswith(("import", "from"))) <= 12


def test_the_errors_of_the_troubleshooting_table_are_the_programs():
    folders = ("util", "ldm", "ldm_inverse", "scripts", "data")
    sources = [ROOT / "model_loader.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    said = " ".join(" ".join(path.read_text() for path in sources).split())
    rows = [line for line in (ROOT / "docs/TROUBLESHOOTING.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) >= 6
    for row in rows:
        for part in row.split("`")[1].split("..."):
            assert " ".join(part.split()) in said, f"no program says {part!r}"


def anchors(path: Path) -> set[str]:
    """Return the names under which a page's headings can be linked to."""
    headings = [line.lstrip("# ").lower() for line in path.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path",
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "models/demo/README.md")]
    + sorted((ROOT / "docs").glob("*.md")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if not target.startswith("http"):
            assert (path.parent / file).exists(), target
            assert not anchor or anchor in anchors((path.parent / file) if file else path), target
