"""Doors: other libraries' models, pipelines and conventions, run by this library's tables."""
