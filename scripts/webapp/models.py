"""The models that are there, and how the command is told of one."""

from functools import lru_cache
from pathlib import Path

from ldm.checkpoints.places import available_models
from model_loader import build_model, model_config
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def models_there() -> list[str]:
    """Return the models below `models/` whose configuration can be told, as paths below it.

    Raises:
        UserError: there is none.
    """
    found = [name for name in available_models(ROOT / "models") if _is_usable(name)]
    if not found:
        raise UserError(f"no model below {ROOT / 'models'}: bash scripts/download_models.sh ffhq fetches one")
    return found


def model_words(name: str) -> list[str]:
    """Return the command's words for one of `models_there`."""
    return ["--model", f"models/{name}"]


@lru_cache
def side_of(name: str) -> int:
    """Return the side of the pictures that a model below `models/` was trained on, in pixels.

    Raises:
        UserError: it is none that is known.
    """
    return build_model(model_config(None, ROOT / "models" / name)).resolution


def _is_usable(name: str) -> bool:
    try:
        return side_of(name) > 0
    except UserError:
        return False
