"""Training: one loop, and the ways to launch it on one process, several, or several nodes."""
