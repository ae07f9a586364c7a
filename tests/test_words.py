"""Docstrings begin with a noun or a verb, so that their first line says what a thing is or does."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data", "ldm", "ldm_inverse", "scripts", "tests", "util")


KINDS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_docstring_begins_with_what():
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    assert len(paths) > 200
    for path in paths:
        documented = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, KINDS)]
        begun = [(ast.get_docstring(node) or "").split(maxsplit=1)[:1] for node in documented]
        assert ["What"] not in begun, path
