"""The networks that can be trained, by name."""

from training.zoo.classifier import Classifier
from training.zoo.registry import create, least_px, names

__all__ = ["Classifier", "create", "least_px", "names"]
