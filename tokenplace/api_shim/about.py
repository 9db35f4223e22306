"""What the API says about itself. Start at `add_about_routes`."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import trio
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from tokenplace import __version__
from tokenplace.api_shim.form import Json
from tokenplace.api_shim.metrics import Metrics
from tokenplace.router.journal import Journal


def add_about_routes(router: APIRouter, metrics: Metrics, journal: Journal) -> None:
    """GET /health, /version and /metrics."""

    @router.get("/health")
    async def get_health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": "v1",
            "service": "token.place",
            "timestamp": int(time.time()),
        }

    @router.get("/version")
    async def get_version() -> dict[str, Any]:
        return {"version": __version__}

    @router.get("/metrics")
    async def get_metrics() -> Response:
        # In a thread: the first time it takes 50 ms, and streams are running.
        exposition = await trio.to_thread.run_sync(import_module, "tokenplace.api_shim.exposition")
        text = exposition.metrics_text(metrics, journal, __version__)
        return Response(text, media_type=exposition.CONTENT_TYPE)


def add_document_route(router: APIRouter, make: Callable[[], Json]) -> None:
    """GET /openapi.json. make: called for each answer; nobody asks twice."""

    @router.get("/openapi.json")
    async def get_document() -> Response:
        return JSONResponse(await trio.to_thread.run_sync(make))
