"""The trained state and the compiled pipelines are shared by every test of this folder."""

from compiled import bare, site
from trained_store import store, trained

__all__ = ["bare", "site", "store", "trained"]
