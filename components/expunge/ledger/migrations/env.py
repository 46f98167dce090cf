"""Alembic runs this: it migrates on the connection that `expunge.ledger.database` opened.

The caller's transaction is around it, so that a migration is there whole or not at all.
"""

from alembic import context

from expunge.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="ledger_version",  # MLflow's tables, with a version of their own, may lie beside
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
