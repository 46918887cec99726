"""Sphinx makes the site of docs/ from the pages, the docstrings and the topic scripts: `make docs`.

Nothing comes from a network: mathematics is MathML, its font is copied out of a package, and no page asks another host
for anything.
"""

import sys
import warnings
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
matplotlib.use("agg")
style = HERE / "topics" / "topics.mplstyle"
matplotlib.rcParamsDefault.update(matplotlib.rc_params_from_file(style, use_default_template=False))
warnings.filterwarnings("error", module="fewstep")  # a page must not teach what warns

import fewstep  # noqa: E402

project = "fewstep"
author = copyright = "The fewstep authors"
version = release = fewstep.__version__

extensions = ["myst_parser", "sphinx_gallery.gen_gallery", "links", "mathml", "reference"]
exclude_patterns = ["topics", "README.md", "**/GALLERY_HEADER.rst"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "code"
highlight_language = "none"
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 130
python_use_unqualified_type_names = True

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath", "fieldlist", "html_image"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "fewstep"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8ee", "color-brand-content": "#8ab8ee"},
}

sphinx_gallery_conf = {
    "examples_dirs": "topics",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "thumbnail_size": (480, 240),
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib",),
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "backreferences_dir": None,
}
