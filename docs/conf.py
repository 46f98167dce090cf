"""Settings of the site that `make docs` builds."""

from expunge import __version__

project = "expunge"
author = "The expunge authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser"]
# Sections below a page's title can be linked to, and a link to one that is missing is a warning.
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"  # brings its own files: the site loads nothing from elsewhere
html_title = f"expunge {__version__}"
html_show_sourcelink = False
html_copy_source = False
