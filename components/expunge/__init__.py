"""Train an image classifier so that it can forget classes later: in one shot, without its data."""

__version__ = "0.1.0"
