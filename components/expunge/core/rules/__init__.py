"""Rules that change the weights so that a class is forgotten."""
