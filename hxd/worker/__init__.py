"""The process that holds one plugin and one model. It knows the wire and the plugin contract, and
nothing of HTTP, of the daemon or of other workers."""
