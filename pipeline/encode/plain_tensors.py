"""Loads weights files made by strangers, and checks their tensors before any use.

A pickle is opened only as far as torch's `weights_only` allows, which runs no code from it.
"""

import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file

from pairmill.schemas.errors import FailureKind, PairmillError


class DamagedWeightsError(PairmillError, ValueError):
    """The file cannot be loaded. The message says why, without the path."""

    kind = FailureKind.JOB


class UnsafeWeightsError(PairmillError, ValueError):
    """The file contains objects that are not tensors, so it is not loaded."""

    kind = FailureKind.JOB


def load_untrusted(path: Path) -> object:
    """The content of a `.safetensors` file, or of a file written by torch.save. Raises OSError, DamagedWeightsError or
    UnsafeWeightsError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_unpacked_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a problem behind a warning raises an error, here or later
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, DamagedWeightsError):
        raise
    except UnpicklingError:
        raise UnsafeWeightsError(f"{path} contains objects that are not tensors") from None
    except Exception as error:  # for broken bytes, torch raises IndexError, AttributeError or any other error
        raise DamagedWeightsError(f"{type(error).__name__}: {error}") from error


def problem_with(tensor: torch.Tensor) -> str | None:
    """Why a tensor is not a plain array of real numbers whose values are all in the file. None if it is one. A pickle
    can also contain sparse and quantized tensors, tensors without values, and tensors that repeat one value a billion
    times."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_plain or tensor.is_complex():
        return "is not a plain array of real numbers"
    if tensor.nelement() > tensor.untyped_storage().nbytes():
        return "is larger than its data in the file"
    return None


def _check_unpacked_size(path: Path) -> None:
    """Raise DamagedWeightsError if an archive unpacks to more than the file's size. torch.save never compresses."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise DamagedWeightsError("it is compressed; save it with torch.save or as .safetensors")
