"""Write what was answered into the audit log, before the answer goes out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.core.errors import AuditError
from app.core.postprocess import Prediction
from app.core.spec import MODEL_FILE, Manifest
from app.inference.classifier import Picture, PictureError
from app.security.audit import Entry
from app.services import Services


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asked.

    Attributes:
        request_id: Of the request.
        key: Name of the API key; None if none was needed.
    """

    request_id: str
    key: str | None


async def record(
    services: Services,
    caller: Caller,
    manifest: Manifest,
    pictures: Sequence[Picture],
    results: Sequence[Prediction | PictureError],
) -> None:
    """Write one line for each picture that has an answer; without an audit log, none.

    Args:
        services: Where the log is.
        caller: Who asked.
        manifest: Of the model that answered.
        pictures: Hashed, not written: files as they came, others as their pixels.
        results: Their answers, in the same order.

    Raises:
        AuditError: It can't be written, and the settings say that the answer is then not given.
    """
    if services.audit is None:
        return
    variant = manifest.variants.get(services.settings.precision)
    graph_sha256 = manifest.files[variant.file if variant else MODEL_FILE]
    entries = [
        Entry(
            request_id=caller.request_id,
            key=caller.key,
            data=picture.tobytes() if isinstance(picture, np.ndarray) else picture.data,
            model=(manifest.name, manifest.version),
            model_sha256=graph_sha256,
            prediction=result,
        )
        for picture, result in zip(pictures, results, strict=True)
        if isinstance(result, Prediction)
    ]
    if not entries:
        return
    try:
        await services.audit.write(entries)
    except AuditError:
        services.metrics.audit_failures.inc(len(entries))
        if services.settings.audit_on_failure == "refuse":
            raise
    else:
        services.metrics.audit_records.inc(len(entries))
