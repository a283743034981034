"""Reads request lines in all formats, writes result lines, and validates files."""
