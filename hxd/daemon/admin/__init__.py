"""What operators see: status, metrics, keys. Reads state, and asks its owner to change it."""
