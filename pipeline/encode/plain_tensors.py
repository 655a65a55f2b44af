"""Checks the tensors of a weights file that a stranger made, before anything computes with them."""

import torch


def problem_with(tensor: torch.Tensor) -> str | None:
    """Why a tensor is no plain array of real numbers that its file holds; None if it is. A pickle may also hold sparse
    and quantized tensors, tensors without values, and tensors that say that one number stands for a billion."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_plain or tensor.is_complex():
        return "is not a plain array of real numbers"
    if tensor.nelement() > tensor.untyped_storage().nbytes():
        return "is larger than what the file holds of it"
    return None
