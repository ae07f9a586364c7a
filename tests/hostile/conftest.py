"""The command on a tiny model, for tests that give it something broken."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sample_condition import main
from tests.test_sample_condition import place, words  # noqa: F401 (place is a fixture)


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """The working folder of the test, in which nothing may appear."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def refused(place, tmp_path, elsewhere, capsys, monkeypatch) -> Callable[..., str]:  # noqa: F811
    """Run the command with these words added: it must end with status 2, say why in a line or two, write nothing."""
    monkeypatch.setattr("ldm.models.diffusion.solver.Solver.restore", lambda *_, **__: pytest.fail("it was sampled"))

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
