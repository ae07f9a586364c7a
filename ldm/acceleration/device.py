"""Where a model computes."""

import torch

from util.errors import UserError
from util.words import unknown

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(device: str = "auto", gpu: int = 0) -> torch.device:
    """Turn a word into a device.

    Args:
        device: "auto" (a CUDA card where there is one, else Apple's GPU, else the CPU), "cpu", "cuda" or "mps".
        gpu: which CUDA card.

    Raises:
        UserError: another word, or a device that this machine does not have.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not 0 <= gpu < count:
            raise UserError(f"no CUDA card {gpu}: this machine offers {count} (--device cpu needs none)")
        return torch.device("cuda", gpu)
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no Apple GPU that torch can use (--device cpu needs none)")
    return torch.device(device)
