"""Texts: read from tables, cleaned, split into pieces."""
