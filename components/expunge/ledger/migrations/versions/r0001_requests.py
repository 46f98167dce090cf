"""The first tables: requests, claims, champions, what was written, and the event log."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

# The log is append-only, whoever writes. SQLite takes a trigger for each kind of change, and one
# for REPLACE, which deletes and calls it an insertion; Postgres has triggers that call a function,
# and for TRUNCATE too.
SQLITE_GUARD = """
CREATE TRIGGER events_no_{change} BEFORE {change} ON events
BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END
"""
SQLITE_NO_REPLACE = """
CREATE TRIGGER events_no_replace BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END
"""
POSTGRES_FUNCTION = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the event log is append-only'; END $$
"""
POSTGRES_GUARD = """
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""


def upgrade() -> None:
    """Make the tables, the guards of the log, and its head before the first event."""
    op.create_table(
        "champions",
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("weights", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("forgotten", sa.JSON(), nullable=False),
        sa.Column("grade", sa.String(length=20), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
    op.create_table(
        "claims",
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("run", sa.String(length=200), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=True),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("opened_at", sa.String(length=32), nullable=False),
        sa.Column("lease_until", sa.String(length=32), nullable=False),
        sa.Column("base_version", sa.Integer(), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("mlflow_run", sa.String(length=64), nullable=True),
        sa.Column("verdict", sa.String(length=20), nullable=True),
        sa.Column("failed_checks", sa.JSON(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("closed_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("token"),
        sqlite_autoincrement=True,
    )
    op.create_index("active_models", "claims", ["model", "state"], unique=False)
    op.create_index(
        "one_active_claim_a_run",
        "claims",
        ["run"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "erased",
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("class_index", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("request", sa.String(length=40), nullable=True),
        sa.Column("erased_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("model", "class_index"),
    )
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("request", sa.String(length=40), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_events_model", "events", ["model"], unique=False)
    op.create_index("ix_events_request", "events", ["request"], unique=False)
    head = op.create_table(
        "head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name="one_head"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "texts",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("request", sa.String(length=40), nullable=False),
        sa.Column("field", sa.String(length=40), nullable=False),
        sa.Column("salt", sa.String(length=64), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("ix_texts_request", "texts", ["request"], unique=False)
    op.create_table(
        "written",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=True),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("run", sa.String(length=200), nullable=True),
        sa.Column("written_at", sa.String(length=32), nullable=False),
        sa.Column("removed_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("written_addresses", "written", ["address"], unique=False)
    op.create_table(
        "requests",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("due_at", sa.String(length=32), nullable=False),
        sa.Column("requester", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("approver", sa.String(length=64), nullable=True),
        sa.Column("alone", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("grade", sa.String(length=20), nullable=True),
        sa.Column("failed_checks", sa.JSON(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("settled_at", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["approver"], ["texts.digest"]),
        sa.ForeignKeyConstraint(["reason"], ["texts.digest"]),
        sa.ForeignKeyConstraint(["requester"], ["texts.digest"]),
        sa.ForeignKeyConstraint(["token"], ["claims.token"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("queue", "requests", ["model", "state", "due_at"], unique=False)
    op.create_table(
        "request_classes",
        sa.Column("request", sa.String(length=40), nullable=False),
        sa.Column("class_index", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=120), nullable=False),
        sa.Column("stands", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["name"], ["texts.digest"]),
        sa.ForeignKeyConstraint(["request"], ["requests.id"]),
        sa.PrimaryKeyConstraint("request", "class_index"),
    )
    op.create_index(
        "one_request_a_class",
        "request_classes",
        ["model", "class_index"],
        unique=True,
        sqlite_where=sa.text("stands = 1"),
        postgresql_where=sa.text("stands = 1"),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64}])
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(SQLITE_GUARD.format(change=change))
        op.execute(SQLITE_NO_REPLACE)
    else:
        op.execute(POSTGRES_FUNCTION)
        op.execute(POSTGRES_GUARD)
