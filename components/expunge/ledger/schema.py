"""The tables. A change here needs a revision in `migrations/versions` (a test compares the two).

Times are ISO 8601 in UTC with microseconds, as text: they sort as they are, and the event log
hashes the very bytes that are stored. Who asked and why stands in `texts` alone; other tables have
its digest.
"""

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

# One row: where the event log ends. Writers lock it, so that they take turns, and an event cut off
# the end of the log is missed.
head = Table(
    "head",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="one_head"), primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
)

# `body` is canonical JSON, and `hash` the SHA-256 of the canonical JSON of all the rest.
events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("model", String(120), nullable=False, index=True),
    Column("request", String(40), index=True),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

# Personal texts. Erased, `salt` and `text` are gone and `digest` says nothing any more.
texts = Table(
    "texts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("request", String(40), nullable=False, index=True),
    Column("field", String(40), nullable=False),
    Column("salt", String(64)),
    Column("text", Text),
)

# What a run holds of the queue. The token only ever grows: of two runs that believe to hold a
# request, the one with the lower token has lost it.
claims = Table(
    "claims",
    metadata,
    Column("token", Integer, primary_key=True),
    Column("model", String(120), nullable=False),
    Column("run", String(200), nullable=False),
    Column("holder", String(200)),
    Column("state", String(10), nullable=False),  # active or closed
    Column("opened_at", String(32), nullable=False),
    Column("lease_until", String(32), nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("classes", JSON, nullable=False),
    Column("mlflow_run", String(64)),
    Column("verdict", String(20)),  # the gate's
    Column("failed_checks", JSON),
    Column("outcome", String(20)),
    Column("closed_at", String(32)),
    sqlite_autoincrement=True,
)
Index("active_models", claims.c.model, claims.c.state)
Index("one_active_claim_a_run", claims.c.run, unique=True,
      sqlite_where=text("state = 'active'"), postgresql_where=text("state = 'active'"))  # fmt: skip

requests = Table(
    "requests",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("model", String(120), nullable=False),
    Column("state", String(12), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("due_at", String(32), nullable=False),
    Column("requester", String(64), ForeignKey("texts.digest"), nullable=False),
    Column("reason", String(64), ForeignKey("texts.digest"), nullable=False),
    Column("approver", String(64), ForeignKey("texts.digest")),
    Column("alone", Integer, nullable=False),  # 1 after a rejection of a run of several
    Column("attempts", Integer, nullable=False),
    Column("token", Integer, ForeignKey("claims.token")),  # its last claim
    Column("version", Integer),  # what fulfilled it
    Column("grade", String(20)),
    Column("failed_checks", JSON),
    Column("error", Text),
    Column("settled_at", String(32)),
)
Index("queue", requests.c.model, requests.c.state, requests.c.due_at)

request_classes = Table(
    "request_classes",
    metadata,
    Column("request", String(40), ForeignKey("requests.id"), primary_key=True),
    Column("class_index", Integer, primary_key=True),
    Column("model", String(120), nullable=False),
    Column("stands", Integer, nullable=False),  # 0 once the request is cancelled
    Column("name", String(64), ForeignKey("texts.digest")),
)
Index("one_request_a_class", request_classes.c.model, request_classes.c.class_index, unique=True,
      sqlite_where=text("stands = 1"), postgresql_where=text("stands = 1"))  # fmt: skip

champions = Table(
    "champions",
    metadata,
    Column("model", String(120), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("weights", String(64), nullable=False),  # SHA-256: numbers begin anew with a new model
    Column("previous", Integer),
    Column("forgotten", JSON, nullable=False),
    Column("grade", String(20), nullable=False),
    Column("revision", Integer, nullable=False),  # grows with each change
    Column("changed_at", String(32), nullable=False),
)

# What must not come back, and the version and request that erased it first.
erased = Table(
    "erased",
    metadata,
    Column("model", String(120), primary_key=True),
    Column("class_index", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("request", String(40)),
    Column("erased_at", String(32), nullable=False),
)

written = Table(
    "written",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("address", Text, nullable=False),
    Column("digest", String(71)),
    Column("kind", String(40), nullable=False),
    Column("model", String(120)),
    Column("classes", JSON, nullable=False),
    Column("run", String(200)),
    Column("written_at", String(32), nullable=False),
    Column("removed_at", String(32)),
)
Index("written_addresses", written.c.address)
