"""The training package's exceptions; their text is fit to show.

TrainingError
├── ConfigError
├── DataError
├── RunError
└── ParityError
"""


class TrainingError(Exception):
    """Base of every error that the training raises on purpose."""


class ConfigError(TrainingError):
    """A configuration is missing or wrong."""


class DataError(TrainingError):
    """A data folder or an index is missing or wrong."""


class RunError(TrainingError):
    """A run's folder lacks what a step needs, or the run itself failed."""


class ParityError(TrainingError):
    """An exported graph does not compute what the network does."""
