"""Decides on which device a model runs and in which number format it computes."""

from pathlib import Path
from typing import Literal

from pairmill.pipeline.encode.model_error import ModelError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]


_GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
"""Device files of the drivers that torch.cuda can use, in /dev: NVIDIA, Jetson, AMD and WSL."""


def resolve_device(run: RunConfig) -> Device:
    """The job's device, with `auto` resolved for this machine. Raises ModelError if the job requires a GPU and this
    machine has none."""
    if run.device == "cpu" or (run.device == "auto" and not _has_gpu_driver()):
        return "cpu"
    import torch  # takes more than a second, so only machines with a driver import it

    if torch.cuda.is_available():
        return "cuda"
    if run.device == "cuda":
        raise ModelError("run.device is cuda, but this machine has no CUDA device; use run.device=cpu")
    return "cpu"


def _has_gpu_driver() -> bool:
    return any(any(Path("/dev").glob(pattern)) for pattern in _GPU_DEVICES)


def check_device(run: RunConfig) -> None:
    """Raise ModelError if the job requires a GPU and this machine has none. Imports torch only for such a job."""
    if run.device == "cuda":
        resolve_device(run)


def resolved_dtype(config: ModelConfig, run: RunConfig) -> Dtype:
    """The model's number format, with `auto` resolved for this machine."""
    return dtype_on(config, resolve_device(run))


def dtype_on(config: ModelConfig, device: Device) -> Dtype:
    """The model's number format, with `auto` resolved for a device."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if device == "cuda" else "float32"
