"""The networks that can be trained, by name."""

from training.zoo.registry import Classifier, create, names

__all__ = ["Classifier", "create", "names"]
