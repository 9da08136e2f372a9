"""Panels: what a visitor moves in a notebook or on a web page; they need ipywidgets."""
