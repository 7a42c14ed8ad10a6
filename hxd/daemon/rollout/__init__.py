"""Versions in service: hot swap, canary, rollback. Knows nothing of HTTP."""
