"""Interactive panels for notebooks and web pages; they need ipywidgets."""
