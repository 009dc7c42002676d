"""Released models by one line: `torch.hub.load("<this repository>", "landmarks68", source="local")`.

Each entry returns a module in eval mode. `.preprocess` takes uint8 face crops (`.expects` says which), the module its
result and returns named outputs. The card beside each file (papers/<paper>/weights/<name>/README.md) tells the rest.
One that is not released yet raises MissingData with the command that trains it.
"""

import sys
from importlib import import_module
from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "safetensors", "tqdm"]

_HERE = str(Path(__file__).resolve().parent)
if _HERE not in sys.path:  # a checkout is not installed
    sys.path.insert(0, _HERE)


def _load(paper, name, device):
    return import_module(f"facepapers.papers.{paper}.released").load(name, device)


def landmarks68(device="cpu"):
    """68 landmarks of a face crop: our heatmap variant of coarse-to-fine, trained on LFPW. -> Points(points)"""
    return _load("coarse_to_fine", "landmarks68", device)


def landmarks68_cft(device="cpu"):
    """68 landmarks of a face crop: coarse-to-fine training (CFT) itself, trained on LFPW. -> Points(points)"""
    return _load("coarse_to_fine", "landmarks68_cft", device)


def attributes(device="cpu"):
    """Perceived age, gender, ethnicity and emotion of an aligned face. -> dict of probabilities"""
    return _load("face_attributes", "attributes", device)


def expression(device="cpu"):
    """Eight expressions of a face crop, trained on FERPlus's labels. -> Expression(probabilities)"""
    return _load("resup", "expression", device)


def expression_noisy(device="cpu"):
    """Eight expressions, trained on FERPlus with 30 % of the labels flipped. -> Expression(probabilities)"""
    return _load("resup", "expression_noisy", device)


def embedding(device="cpu"):
    """Identity embedding of an aligned face, trained with ArcFace on LFW's View 1 alone. -> Embedding(embedding)"""
    return _load("arcface", "embedding", device)


def embedding16(device="cpu"):
    """Identity embedding of an aligned face of 16 pixels, a distilled student. -> Embedding(embedding)"""
    return _load("hybrid_order_distillation", "embedding16", device)
