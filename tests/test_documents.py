"""The commands that the documents show are run as they stand there.

A block of commands is run when a comment stands before it: `<!-- runs -->`, or `<!-- runs with: WORDS -->`, which adds
words to each of its commands (to look only, or to make it short). The blocks of a document share a folder, in their
order, as a reader would run them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- (?P<slow>slow )?runs(?: with: (?P<words>[^>]+?))? -->\n+(?P<block>(?:    [^\n]*\n|\n)+)")
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
    # A picture that is degraded already.
    (place / "results/mine").mkdir(parents=True)
    sharp = Image.open(min((ROOT / "data/demo").glob("*.png")))
    sharp.filter(ImageFilter.GaussianBlur(3)).save(place / "results/mine/blurred.png")
    for folder in ("demo", "samples"):
        (place / "data" / folder).mkdir()
        picture = min((ROOT / "data" / folder).glob("*.png"))
        shutil.copy(picture, place / "data" / folder)
    return place


def check(document: str, clone: Path, slow: bool) -> None:
    marked = commands(document, slow)
    assert marked, f"{document} has no marked commands"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in marked:
        run = subprocess.run(
            ["bash", "-c", command], cwd=clone, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{command}\n{run.stderr}"


def test_the_readmes_commands_run(clone):
    check("README.md", clone, slow=False)


@pytest.mark.slow
def test_the_readmes_long_commands_run(clone):
    check("README.md", clone, slow=True)


def test_the_errors_of_the_troubleshooting_table_are_the_programs():
    folders = ("util", "ldm", "ldm_inverse", "scripts", "data")
    sources = [ROOT / "model_loader.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    said = " ".join(" ".join(path.read_text() for path in sources).split())
    rows = [line for line in (ROOT / "docs/TROUBLESHOOTING.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) >= 6
    for row in rows:
        for part in row.split("`")[1].split("..."):
            assert " ".join(part.split()) in said, f"no program says {part!r}"


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(path):
    text = path.read_text()
    headings = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if not target.startswith("http"):
            assert (path.parent / file).exists(), target
            assert file or anchor in anchors, target
