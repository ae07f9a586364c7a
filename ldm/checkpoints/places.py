"""Where models are: the files and folders that a person may name, and the message where there is no model."""

from pathlib import Path

from ldm.checkpoints.diffusers_config import is_diffusers_folder
from ldm.checkpoints.shards import is_index
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")
# What scripts/download_models.sh fetches; each goes to a folder of this name (ffhq to models/ldm itself).
DOWNLOADS = ("ffhq", "celeba", "cin", "lsun_churches", "vq-f4", "vq-f8", "kl-f8")
DEMO_COMMAND = (
    "python sample_condition.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml "
    "--diffusion_config models/demo/model.safetensors --task_config configs/tasks/demo/inpainting.yaml --preset demo "
    "--data data/demo"
)
SHOWN = 8  # models in a message


def resolve_model(given: str | Path, root: Path = ROOT / "models") -> Path:
    """Return where a model is.

    Args:
        given: a checkpoint file; a folder in the diffusers layout; a folder with one checkpoint in it; or the id of a
            model on the Hugging Face hub that `scripts/download_models.sh hf` has fetched.
        root: the folder of models.

    Returns:
        A file, or a folder in the diffusers layout.

    Raises:
        UserError: there is no model; the message says how to get one, and names those that are there.
    """
    path = place_of(given, root)
    if path is not None:
        if path.is_file() or is_diffusers_folder(path):
            return path
        if path.is_dir():
            return _only_checkpoint(path)
        raise UserError(f"{path} is not a file: give the checkpoint itself")
    here = available_models(root)
    among = f" (in {root.name}/: {', '.join(here[:SHOWN])}{', ...' if len(here) > SHOWN else ''})" if here else ""
    raise UserError(
        f"no checkpoint at {given}{among}\n"
        f"to fetch the published one: bash scripts/download_models.sh {download_name(Path(given))}\n"
        f"or the model that ships with the project: {DEMO_COMMAND}"
    )


def place_of(given: str | Path, root: Path = ROOT / "models") -> Path | None:
    """Return what a path or the id of a model on the hub leads to, whatever that is; None where there is nothing."""
    return next((path for path in (Path(given), root / "hub" / given) if path.exists()), None)


def available_models(root: Path = ROOT / "models") -> list[str]:
    """Return the models below a folder: files as paths relative to it, then the ids of those from the hub."""
    files = [path for pattern in ("*", "*/*", "*/*/*") for path in root.glob(pattern) if path.suffix in SUFFIXES]
    others = {"hub", "first_stage_models"}
    alone = [path.relative_to(root) for path in sorted(files) if path.is_file()]
    hub = sorted(path.relative_to(root / "hub").as_posix() for path in root.glob("hub/*/*") if path.is_dir())
    return [path.as_posix() for path in alone if path.parts[0] not in others] + hub


def download_name(path: Path) -> str:
    """Return what to tell scripts/download_models.sh for a model that is not at a path."""
    if path.parent.name in DOWNLOADS:
        return path.parent.name
    is_id = len(path.parts) == 2 and not path.suffix and not path.is_absolute()
    return f"hf {path.as_posix()}" if is_id else "ffhq"


def _only_checkpoint(folder: Path) -> Path:
    """Return the one checkpoint in a folder that has no other layout: a file, or the index of shards."""
    indices = sorted(path for path in folder.iterdir() if is_index(path))
    files = indices or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(files) == 1:
        return files[0]
    if not files:
        raise UserError(f"{folder} is a folder without a checkpoint and without a model_index.json")
    names = ", ".join(path.name for path in files[:SHOWN])
    raise UserError(f"{folder} is not a file, and holds {len(files)} checkpoints: give one of them ({names})")
