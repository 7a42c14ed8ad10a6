"""What lies on disk: models, plugins, keys. Functions here block; the daemon calls them in a
thread."""
