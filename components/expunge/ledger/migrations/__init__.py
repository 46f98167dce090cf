"""Alembic's environment and its revisions; `expunge.ledger.database` runs them."""
