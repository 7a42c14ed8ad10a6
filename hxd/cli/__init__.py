"""The commands `hxd` and `hxctl`."""
