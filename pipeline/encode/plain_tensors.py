"""Loads weights files that a stranger made, and checks their tensors before anything computes with them.

A pickle is opened only as far as torch's `weights_only` allows: it runs nothing.
"""

import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file

from pairmill.schemas.errors import FailureKind, PairmillError


class DamagedWeightsError(PairmillError, ValueError):
    """The file cannot be loaded; the message says why, without the path."""

    kind = FailureKind.JOB


class UnsafeWeightsError(PairmillError, ValueError):
    """The file holds more than tensors, so it is not loaded."""

    kind = FailureKind.JOB


def load_untrusted(path: Path) -> object:
    """What is in a `.safetensors` file, or in a file of torch.save's. Raises OSError, DamagedWeightsError and
    UnsafeWeightsError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_unpacked_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what makes it fail or is refused later
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, DamagedWeightsError):
        raise
    except UnpicklingError:
        raise UnsafeWeightsError(f"{path} holds more than tensors") from None
    except Exception as error:  # the border of a file: broken bytes make torch raise IndexError, AttributeError, any
        raise DamagedWeightsError(f"{type(error).__name__}: {error}") from error


def problem_with(tensor: torch.Tensor) -> str | None:
    """Why a tensor is no plain array of real numbers that its file holds; None if it is. A pickle may also hold sparse
    and quantized tensors, tensors without values, and tensors that say that one number stands for a billion."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_plain or tensor.is_complex():
        return "is not a plain array of real numbers"
    if tensor.nelement() > tensor.untyped_storage().nbytes():
        return "is larger than what the file holds of it"
    return None


def _check_unpacked_size(path: Path) -> None:
    """Raise DamagedWeightsError if an archive unpacks to more than the file's size: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise DamagedWeightsError("it is compressed; save it with torch.save or as .safetensors")
