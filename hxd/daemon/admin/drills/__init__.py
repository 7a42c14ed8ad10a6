"""Faults on purpose. Every drill leaves the box as it found it, also when it is cut short."""
