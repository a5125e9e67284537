"""The documentation as a site: Markdown by MyST, docstrings by autodoc. A warning is an error (``make docs``)."""

from __future__ import annotations

import chainrule

project = "chainrule"
author = "the authors of chainrule"
release = version = chainrule.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # errata.md#72 finds its heading
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"chainrule {release}"
html_show_copyright = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and units are in the text
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in one list: some are properties with an entry of their own
napoleon_custom_sections = [("Source", "notes_style")]
