"""The arguments of `sample_condition.py`.

Nothing heavy is imported here (no torch, NumPy or OmegaConf), so that `--help` and a mistyped argument answer at once.
"""

import argparse
from pathlib import Path

from util.cli import Parser, add_debug, minutes, shard, tiles, whole_number
from util.processes import local_rank

DESCRIPTION = """\
Restore images with a latent diffusion model: degrade each picture as the task says (or read a measurement),
sample a latent that explains it, and write the restored image."""

EXAMPLES = """\
settings:
  defaults (those of the published code) < task file < preset < key=value words and arguments given here.
  A key is the setting's dotted path, as in  measurement.noise.sigma=0.05  conditioning.resample.interval=20
  use_ema=true takes the moving average of the model's weights, if its file has one.
  low_memory=true recomputes the decoder's blocks to save memory; compile=true fuses operations, which takes minutes at
  the start and needs a C++ compiler, or Triton on a card.

examples:
  # the demo model, on the faces that come with the project
  python sample_condition.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --diffusion_config models/demo/model.safetensors --task_config configs/tasks/demo/inpainting.yaml \\
      --preset demo --limit 2 --save_dir results/inpainting

  # the published model and task (fetch the weights first: bash scripts/download_models.sh)
  python sample_condition.py --task_config configs/tasks/super_resolution_config.yaml --data data/samples

  # repeat a run from its folder
  python sample_condition.py --from results/inpainting --save_dir results/again

  # show what would be done and what it would cost; nothing is written and no weights are needed
  python sample_condition.py --task_config configs/tasks/motion_deblur_config.yaml --preset paper --dry_run
"""

LDM_CONFIG = Path("configs/latent-diffusion/ffhq-ldm-vq-4.yaml")
DIFFUSION_CONFIG = Path("models/ldm/model.ckpt")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `sample_condition.py`. Arguments that a task or preset may also set default to None."""
    parser = Parser(prog="sample_condition.py", description=DESCRIPTION, epilog=EXAMPLES)
    _add_inputs(parser.add_argument_group("what to restore"))
    _add_model(parser.add_argument_group("model"))
    _add_solver(parser.add_argument_group("solver"))
    _add_run(parser.add_argument_group("run"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting, by its dotted path")
    return parser


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--task_config",
        type=Path,
        default=Path("configs/tasks/gaussian_deblur_config.yaml"),
        help="the task: operator, noise, data (default: %(default)s)",
    )
    group.add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="DIR",
        help="repeat the run in this folder with all its settings, except those that this command changes",
    )
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="run this Python file first: it registers operators, noises or other parts of your own "
        "(docs/OPERATORS.md); may be given several times. With --from: the same files, unchanged",
    )
    group.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="pictures to restore, instead of the task's data.root: a folder, a picture, or a .zip archive, or a "
        ".txt file that names one on each line (further columns are left out; a single number is the picture's class)",
    )
    group.add_argument(
        "--data_root", metavar="DIR", help="where the paths in such a list begin (default: the list's own folder)"
    )
    group.add_argument(
        "--frames",
        choices=["first", "all"],
        help="of a TIFF, GIF, WebP, APNG, AVIF or DICOM file with several frames, restore the first, or all (NAME_000 "
        "and so on; default: first)",
    )
    group.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N pictures")
    group.add_argument(
        "--resize",
        choices=["error", "center_crop", "resize", "pad"],
        default="error",
        help="what to do with a picture whose size does not fit the model; pad restores it with a border that is cut "
        "off again (default: %(default)s)",
    )
    group.add_argument(
        "--measurement",
        type=Path,
        metavar="FILE|DIR",
        help="restore this instead of degrading pictures: a degraded picture, a .npy file (floats in [-1, 1], uint8 or "
        "uint16), a .safetensors file, or a folder of these; then there is no truth. The label/ folder of an earlier "
        "run repeats exactly its measurements",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        type=Path,
        metavar="FILE|FOLDER|ID",
        help="a checkpoint (.ckpt, .pt, .pth, .safetensors), a folder in the diffusers layout, or the id of a model "
        "that scripts/download_models.sh hf has fetched. Its architecture is recognised where possible",
    )
    group.add_argument(
        "--ldm_config", type=Path, help=f"the model's architecture (default: its own, or without --model {LDM_CONFIG})"
    )
    group.add_argument(
        "--diffusion_config", type=Path, help=f"--model, as the published code calls it (default: {DIFFUSION_CONFIG})"
    )
    group.add_argument("--model_config", help="accepted but not used, as in the published code")
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: %(default)s)"
    )
    group.add_argument(
        "--gpu",
        type=whole_number(0),
        default=local_rank(),
        metavar="N",
        help="the number of the card (default: one for each process under torchrun, else 0)",
    )
    group.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16", "fp16"],
        help="arithmetic of the networks; everything else is fp32 (default: fp32, or the preset's)",
    )


def _add_solver(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset", metavar="NAME|FILE", help="solver settings: a name in configs/presets, or a YAML file"
    )
    group.add_argument(
        "--ddim_steps", type=int, metavar="S", help="sampling steps, 1 to 1000 (default: 500, or the preset's)"
    )
    group.add_argument(
        "--ddim_eta",
        type=float,
        metavar="ETA",
        help="noise in each step: 0 deterministic, 1 ancestral (default: 0.0, or the preset's)",
    )
    group.add_argument(
        "--ddim_scale",
        type=float,
        metavar="SCALE",
        help="classifier-free guidance, for models with classes or prompts; 1 is none (default: 1.0, or the preset's)",
    )
    group.add_argument(
        "--class_label",
        metavar="N|NAME",
        help="the class, for a class-conditional model. Names come from a text file beside the model's configuration, "
        "MODEL.classes.txt, where line n is class n - 1",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help="what the pictures show, for models with prompts (default: the empty prompt)"
    )
    group.add_argument(
        "--negative_prompt",
        metavar="TEXT",
        help="what they do not show; takes effect with --ddim_scale above 1 (default: the empty prompt)",
    )
    group.add_argument(
        "--n_samples_per_class",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="restorations of each measurement (default: %(default)s)",
    )

    group.add_argument(
        "--tiles",
        type=tiles,
        metavar="SIDE,OVERLAP",
        help="run the networks on tiles of SIDE pixels that overlap by OVERLAP, for a picture larger than the model. "
        "Their outputs are blended, and the measurement is of the whole picture. A pass over all tiles counts as one",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--save_dir", type=Path, default=Path("./results"), help="where results go (default: ./results)")
    group.add_argument(
        "--save_format",
        choices=["png", "png16", "tiff", "npy", "safetensors"],
        default="png",
        help="format of the restorations in recon/: png (8 bits) or png16; or unclipped floats in a file beside the "
        "PNG: tiff (black is 0, white 1), npy or safetensors (-1 and 1), or as data.range or measurement.range says "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed of everything random (default: %(default)s)"
    )
    group.add_argument(
        "--batch_size",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="restore N images of the same size at once; worthwhile on a card. Each comes out as it would alone, to "
        "rounding, also after an interruption. When memory runs out, N is halved (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="processor threads; a result depends on their number (default: as in save_dir, or else torch's own)",
    )
    group.add_argument(
        "--checkpoint_minutes",
        type=minutes,
        default=5.0,
        metavar="M",
        help="how often the state of an image in progress is saved; 0 never does (default: 5)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="delete results with other settings from save_dir (default: refuse); results with the same are continued",
    )
    group.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out pictures that cannot be read or do not fit, and continue; failed.csv names them",
    )
    group.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="restore only part I of N of the pictures, for job arrays; the N jobs share one save_dir",
    )
    group.add_argument("--dry_run", action="store_true", help="show settings, inputs and cost; write nothing")
    add_debug(group)
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--verbose", action="store_true", help="say more")
    loudness.add_argument("--quiet", action="store_true", help="only warnings and the table")
