"""How the documentation is built: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import matplotlib

import deidbench

project = "deidbench"
author = "deidbench contributors"
version = release = deidbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "mathml", "deidbench_parts"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
root_doc = "index"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
# a formula stands between $ signs; a price or a shell variable does not
myst_dmath_double_inline = True
myst_dmath_allow_space = False

# -- is an option and "" an empty text, in docstrings and help: they stay as they are
smartquotes = False

html_theme = "furo"
html_title = f"deidbench {release}"
# the font of the formulas, where a reader has none for mathematics: free, with the table that says how brackets grow
html_static_path = ["_static", str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf")]
html_css_files = ["docs.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

nitpicky = True
# Docstrings also name modules that are not for outsiders; what the pages themselves point to must be there.
nitpick_ignore_regex = [("py:.*", ".*")]

linkcheck_timeout = 20
linkcheck_anchors = False
