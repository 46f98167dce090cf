"""Train an image classifier so that it can forget classes later: in one shot, without its data."""

from expunge.errors import record_uncaught_error

__version__ = "0.1.0"

# kfp starts the process of a step, and the body of a component may import any module of ours first:
# every one of them comes through here. Nothing happens where no command waits for the error.
record_uncaught_error()
