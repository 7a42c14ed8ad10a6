"""hxd: an LLM appliance for one box. Nothing happens at import."""

__version__ = "0.1.0"
