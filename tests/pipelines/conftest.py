"""The trained state is shared by every test of this folder."""

from trained_store import store, trained

__all__ = ["store", "trained"]
