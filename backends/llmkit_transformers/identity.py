"""Digests of what a model is made of, for the fingerprint. It knows nothing of what the bytes mean."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedModel


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of all weights as they are in memory, quantised ones included; about a second for two gigabytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def folder_digest(folder: Path, *patterns: str) -> str:
    """SHA-256 of the files that match, with their names."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
