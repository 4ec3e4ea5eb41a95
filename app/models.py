"""Every slice's tables, imported once: for Alembic, workers and tests."""

from app.accounts import models as accounts
from app.chat import models as chat
from app.core import leader, outbox
from app.core.db import Base
from app.datasets import models as datasets
from app.deployments import models as deployments
from app.drafting import models as drafting
from app.evaluations import models as evaluations
from app.exports import models as exports
from app.externals import models as externals
from app.projects import models as projects
from app.recipes import models as recipes
from app.runs import models as runs
from app.searches import models as searches
from app.sources import models as sources

__all__ = [
    "Base",
    "accounts",
    "chat",
    "datasets",
    "deployments",
    "drafting",
    "evaluations",
    "exports",
    "externals",
    "leader",
    "outbox",
    "projects",
    "recipes",
    "runs",
    "searches",
    "sources",
]
