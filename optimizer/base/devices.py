"""Names of the torch devices that scoring and training run on."""

from __future__ import annotations

from .errors import MissingError

DEVICE = r"auto|cpu|cuda(:\d{1,3})?"
"""`cuda` is the first GPU (training uses all). `auto` is `cuda` if present, else `cpu`."""


def device(name: str) -> str:
    """Resolve a device name to `cpu`, `cuda` or `cuda:N`; `auto` uses a GPU if present.

    Raises:
        MissingError: the named CUDA device does not exist.
    """
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if not count:
        raise MissingError("no CUDA device is visible to torch; use --device cpu")
    if int(name.partition(":")[2] or 0) >= count:
        raise MissingError(
            f"there is no {name}: {count} CUDA devices are visible to torch, counted from 0\n"
            "write --device cuda:0, or --device cuda to train on all of them"
        )
    return name
