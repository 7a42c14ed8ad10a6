"""The path of one request, a step per module. Steps never import each other; `generate` composes
them. Knows the supervisor only as "ready replicas of this model, in order"."""
