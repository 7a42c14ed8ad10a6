"""Keeps workers alive. Has never heard of HTTP; see DESIGN.md beside this file."""
