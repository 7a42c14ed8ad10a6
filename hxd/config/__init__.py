"""What an operator may set, and how it is read: `load(path)` gives a `Config`."""

from hxd.config.load import load
from hxd.config.settings import AuthSettings as AuthSettings
from hxd.config.settings import Config, Listen, ModelSettings, Paths, RouteSettings

__all__ = ["AuthSettings", "Config", "Listen", "ModelSettings", "Paths", "RouteSettings", "load"]
