"""`/models`: what is installed and what is served, with manifest, figures and hashes."""

import asyncio
import dataclasses
from typing import Any

from fastapi import APIRouter

from app.core.spec import Manifest
from app.inference.registry import Installed, ModelRef
from app.problems import openapi_problems
from app.schemas import ActiveModel, InstalledModel, ModelList, ModelName, Provider
from app.services import ServicesDep

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="Installed models")
async def models(services: ServicesDep) -> ModelList:
    """List every folder under models/, also those that can't be served, and why."""
    engine = services.engine
    installed = await asyncio.to_thread(engine.registry.scan)  # hashes files that are new
    active = None if engine.model is None else engine.model.installed.ref
    return ModelList(
        active=None if active is None else ModelName(name=active.name, version=active.version),
        models=[InstalledModel(**_describe(model, active)) for model in installed],
    )


@router.get("/active", summary="The model that is served", responses=openapi_problems(503))
async def active_model(services: ServicesDep) -> ActiveModel:
    """Describe the model that answers, as it was loaded."""
    model = services.engine.serving().model
    provider = Provider(requested=services.settings.device, active=model.session.provider)
    return ActiveModel(**_describe(model.installed, model.installed.ref), provider=provider)


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
