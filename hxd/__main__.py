"""`python -m hxd` is the command `hxd`."""

from hxd.cli.main import hxd

if __name__ == "__main__":
    hxd()
