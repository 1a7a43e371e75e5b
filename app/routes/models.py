"""`/models`: what is installed and what is served, with manifest, figures and hashes."""

import asyncio
import dataclasses
from typing import Any, Final

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from app.core.spec import CARD_FILE, Manifest
from app.inference.loader import LoadedModel
from app.inference.registry import Installed, ModelRef
from app.problems import openapi_problems
from app.routes.access import require_admin
from app.schemas import ActiveModel, InstalledModel, ModelChoice, ModelList, ModelName, Provider, SwitchedModel
from app.services import Services, ServicesDep

router = APIRouter(prefix="/models", tags=["models"])

_MAX_CHOICE_BYTES: Final = 16 * 1024


@router.get("", summary="Installed models")
async def models(services: ServicesDep) -> ModelList:
    """List every folder under models/, also those that can't be served, and why."""
    engine = services.engine
    installed = await asyncio.to_thread(engine.registry.scan)  # hashes files that are new
    active = None if engine.model is None else engine.model.installed.ref
    return ModelList(
        active=None if active is None else _name(active),
        resident=[_name(model.installed.ref) for model in engine.resident],
        models=[InstalledModel(**_describe(model, active)) for model in installed],
    )


@router.get("/active", summary="The model that is served", responses=openapi_problems(503))
async def active_model(services: ServicesDep) -> ActiveModel:
    """Describe the model that answers, as it was loaded."""
    return ActiveModel(**_describe_loaded(services.engine.serving().model, services))


@router.get(
    "/active/card",
    summary="The card of the model that is served",
    response_class=PlainTextResponse,
    responses=openapi_problems(404, 503),
)
async def active_card(services: ServicesDep) -> PlainTextResponse:
    """Answer with MODEL_CARD.md, Markdown as plain text: how it was measured, and its limits."""
    ref = services.engine.serving().model.installed.ref
    path = services.settings.models_dir / ref.name / ref.version / CARD_FILE
    try:
        return PlainTextResponse(await asyncio.to_thread(path.read_text, encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HTTPException(404, f"The card of {ref} can't be read.") from error


@router.put(
    "/active",
    summary="Serve another model",
    max_body_size=_MAX_CHOICE_BYTES,  # FastAPI reads a JSON body before it asks who sends it
    responses=openapi_problems(400, 403, 404, 409, 413, 422, 503),
    dependencies=[Depends(require_admin)],
)
async def activate_model(choice: ModelChoice, services: ServicesDep) -> SwitchedModel:
    """Verify, load, warm and prove an installed model, then serve it in place of the old one.

    No request is lost: those under way end with the model that they began with. If the new one
    can't be served, the old one goes on and the answer says why. `active.json` is written, so that
    the next start serves it too; where that folder is read-only, `persisted` is false.
    """
    switch = await services.engine.activate(ModelRef(choice.name, choice.version))
    return SwitchedModel(
        **_describe_loaded(switch.model, services), persisted=switch.problem is None, persist_problem=switch.problem
    )


def _name(ref: ModelRef) -> ModelName:
    return ModelName(name=ref.name, version=ref.version)


def _describe_loaded(model: LoadedModel, services: Services) -> dict[str, Any]:
    return _describe(model.installed, model.installed.ref) | {
        "provider": Provider(requested=services.settings.device, active=model.session.provider),
        "precision": model.precision,
        "max_batch": model.session.max_batch,
    }


def _describe(model: Installed, active: ModelRef | None) -> dict[str, Any]:
    return {
        "name": model.ref.name,
        "version": model.ref.version,
        "active": model.ref == active,
        "verified": model.problem is None,
        "problem": model.problem,
        "manifest": None if model.manifest is None else _without_picture(model.manifest),
        "metrics": model.report,
        "hashes": {} if model.manifest is None else model.manifest.files,
    }


def _without_picture(manifest: Manifest) -> dict[str, Any]:
    fields = dataclasses.asdict(manifest)
    fields["golden"].pop("image_png")
    return fields
