"""Triggers, one per file."""
