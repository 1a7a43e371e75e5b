"""Write what was answered into the audit log, before the answer goes out."""

from collections.abc import Sequence

from starlette.requests import Request

from app.core.errors import AuditError
from app.core.postprocess import Prediction
from app.core.spec import MODEL_FILE, Manifest
from app.inference.classifier import PictureError, Upload
from app.routes.access import key_name
from app.security.audit import Entry
from app.services import Services


async def record(
    request: Request,
    services: Services,
    manifest: Manifest,
    uploads: Sequence[Upload],
    results: Sequence[Prediction | PictureError],
) -> None:
    """Write one line for each picture that has an answer; without an audit log, none.

    Args:
        request: Who asked.
        services: Where the log is.
        manifest: Of the model that answered.
        uploads: The pictures; hashed, not written.
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
            request_id=request.state.request_id,
            key=key_name(request),
            data=upload.data,
            model=(manifest.name, manifest.version),
            model_sha256=graph_sha256,
            prediction=result,
        )
        for upload, result in zip(uploads, results, strict=True)
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
