"""What plugins that hold a model themselves may build on. Needs numpy; the daemon imports none of
it."""
