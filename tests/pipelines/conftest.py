"""The trained state and the compiled pipelines are shared by every test of this folder."""

from compiled import _quick_stacks, bare, site
from trained_store import trained, trained_store

__all__ = ["_quick_stacks", "bare", "site", "trained", "trained_store"]
