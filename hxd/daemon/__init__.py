"""The daemon: one process, one event loop. Never imports a plugin or a model library."""
