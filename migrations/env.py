"""Alembic's entry: the product's own engine and every table of app.models."""

from alembic import context

from app.core.config import get_settings
from app.core.db import make_engine
from app.models import Base

target_metadata = Base.metadata


def run() -> None:
    """Migrate online; batch mode, because SQLite cannot alter columns in place."""
    settings = get_settings()
    if settings.database.startswith("sqlite"):
        settings.home_dir.mkdir(parents=True, exist_ok=True)
    with make_engine(settings.database).connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=target_metadata,
            render_as_batch=True,
            compare_type=True,
            user_module_prefix="app.core.db.",
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


run()
