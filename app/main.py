"""create_app(): middleware, error handlers, static files, routers. Nothing else."""

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.gzip import GZipMiddleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from app.accounts import access
from app.accounts import routes as accounts
from app.chat import routes as chat
from app.chat import stream as chat_stream
from app.core import error_pages, pages, showroom, system_pages
from app.core.csrf import FORM_LIMIT_BYTES, Csrf, csrf_checked
from app.core.edge import Edge
from app.core.streams import Shutdown, Streams
from app.core.templates import set_shell
from app.datasets import routes as datasets
from app.datasets.browsing.model_view import set_model_source
from app.deployments import access as api_access
from app.deployments import api, embeddings, files_api, training_api
from app.deployments import routes as deployments
from app.drafting import routes as drafting
from app.evaluations import routes as evaluations
from app.exports import routes as exports
from app.externals import routes as externals
from app.monitoring import routes as monitoring
from app.overview import routes as overview
from app.overview import shell
from app.projects import routes as projects
from app.recipes import routes as recipes
from app.recipes import tokenizing
from app.runs import routes as runs
from app.searches import routes as searches
from app.sources import routes as sources

# Whatever is in this list needs a signed-in person and a request from our own pages.
# projects comes before overview: /projects/new before /projects/{project_id}.
PRIVATE: list[APIRouter] = [
    system_pages.router,
    projects.router,
    datasets.router,
    recipes.router,
    runs.router,
    searches.router,
    evaluations.router,
    chat.router,
    chat_stream.router,
    externals.router,
    deployments.router,
    exports.router,
    sources.router,
    drafting.router,
    monitoring.router,
    overview.router,
]
# What anonymous visitors may open; each route says itself whom it lets in.
PUBLIC = [pages.router, showroom.router, system_pages.health_router, accounts.router]


def create_app() -> FastAPI:
    """The web application; the `stream` process runs the same one. A route that takes more says so (max_body_size)."""
    shutdown = Shutdown()
    app = FastAPI(
        title="GPT Builder",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=shutdown.watched,
        redirect_slashes=False,
    )
    set_shell(shell.shell)
    set_model_source(tokenizing.chosen)
    error_pages.install(app, on_refusal=access.record_refusal)
    for router in PUBLIC:
        app.include_router(router, dependencies=[Depends(csrf_checked)])
    for router in PRIVATE:
        app.include_router(router, dependencies=[Depends(access.signed_in), Depends(csrf_checked)])
    # Keys instead of cookies: no page can make a browser send one.
    app.include_router(api.router)
    app.include_router(embeddings.router)
    app.include_router(files_api.router)
    app.include_router(training_api.router)
    # Pages and JSON; event streams pass through as they are. Tokens in pages are masked, so their length tells nothing.
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    # As a middleware of its own, inside the edge: FastAPI's own one would stand outside and answer without headers.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=FORM_LIMIT_BYTES)
    app.add_middleware(Csrf)
    app.add_middleware(Streams, shutdown=shutdown, rights=access.rights, api_rights=api_access.rights)
    app.add_middleware(Edge, on_error=error_pages.unexpected)
    return app
