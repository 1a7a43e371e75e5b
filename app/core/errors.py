"""The domain's exceptions. They know nothing of HTTP; `app.problems` maps each one to a status.

LeukoscopeError
├── InputError                  what the caller sent is wrong
│   ├── ImageError              one picture is wrong; its neighbours are not
│   │   ├── UndecodableImageError
│   │   └── ImageTooLargeError
│   ├── MalformedFormError
│   ├── UnsupportedMediaTypeError
│   ├── BodyTooLargeError
│   ├── TooManyImagesError
│   └── TensorError
├── ServiceError                the service can't answer now
│   ├── QueueFullError
│   ├── DeadlineExceededError
│   ├── NotReadyError
│   ├── SwitchInProgressError
│   ├── InferenceError
│   ├── DeviceMemoryError
│   ├── AuditError
│   └── ListenError
├── AccessError                 who asks may not
│   ├── UnauthenticatedError
│   └── ForbiddenError
└── ModelError                  what is installed under models/ is wrong
    ├── ModelNotFoundError
    ├── NoExplanationError
    ├── ManifestError
    ├── ModelIntegrityError
    ├── GoldenMismatchError
    └── ProviderError
"""

from typing import ClassVar


class LeukoscopeError(Exception):
    """Base of every error that this project raises on purpose; its text is fit to show."""


class InputError(LeukoscopeError):
    """The caller sent something that can't be answered."""


class ImageError(InputError):
    """One picture can't be used.

    Attributes:
        reason: The same for every occurrence, for metrics.
    """

    reason: ClassVar[str]


class UndecodableImageError(ImageError):
    """The bytes are no picture of an accepted format, or a damaged one."""

    reason = "undecodable-image"


class ImageTooLargeError(ImageError):
    """The picture has more pixels than the service accepts."""

    reason = "image-too-large"


class MalformedFormError(InputError):
    """The multipart form can't be parsed or has no usable part."""


class UnsupportedMediaTypeError(InputError):
    """The content type is neither a form nor an accepted image type."""


class BodyTooLargeError(InputError):
    """The request has more bytes than the service accepts."""


class TooManyImagesError(InputError):
    """The request has more pictures than the service accepts at once."""


class TensorError(InputError):
    """A request of the Open Inference Protocol is malformed, or its tensors are not the model's."""


class ServiceError(LeukoscopeError):
    """The service can't answer now; nothing is wrong with the request."""


class QueueFullError(ServiceError):
    """As many pictures, or bytes, are waiting as the service admits.

    Attributes:
        retry_after_s: When room is likely, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(ServiceError):
    """The answer was not there within the time limit."""


class NotReadyError(ServiceError):
    """The service is starting, draining, or has no working model."""


class SwitchInProgressError(ServiceError):
    """Another change of the served model is under way."""


class InferenceError(ServiceError):
    """The model failed on a batch, or gave numbers that are no answer."""


class DeviceMemoryError(ServiceError):
    """The device has no memory for a batch of this size; a smaller one may fit."""


class ListenError(ServiceError):
    """A port that was asked for can't be served."""


class AuditError(ServiceError):
    """The audit log can't be written or followed."""


class AccessError(LeukoscopeError):
    """The caller may not do this."""


class UnauthenticatedError(AccessError):
    """A key is needed, and none came, or an unknown one."""


class ForbiddenError(AccessError):
    """Whoever it is may not do this."""


class ModelError(LeukoscopeError):
    """A model folder can't be served."""


class ModelNotFoundError(ModelError):
    """No model of this name and version is installed, or it is not one that answers now."""


class NoExplanationError(ModelError):
    """The model answers, but gives no evidence map to explain it with."""


class ManifestError(ModelError):
    """A manifest is missing, is no JSON, or says something that is not understood."""


class ModelIntegrityError(ModelError):
    """A model file is missing or is not the one that the manifest names by its hash."""


class GoldenMismatchError(ModelError):
    """The loaded model does not reproduce the output that was stored at export."""


class ProviderError(ModelError):
    """The execution provider that was asked for is not the one that runs."""
