"""create_app(): middleware, error handlers, static files, routers. Nothing else."""

from fastapi import FastAPI


def create_app() -> FastAPI:
    """The web application; the `stream` process runs the same one."""
    app = FastAPI(title="GPT Builder", docs_url=None, redoc_url=None, openapi_url=None)
    return app
