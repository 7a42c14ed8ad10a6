"""`hxd`: run the daemon, or check what it would run with."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hxd import __version__
from hxd.errors import ConfigError

DEFAULT_CONFIG = Path("/etc/hxd/hxd.toml")

_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Configuration file; conf.d/*.toml beside it is read too.",
)


@click.group()
@click.version_option(__version__, prog_name="hxd")
def hxd() -> None:
    """An LLM appliance for one box: serves models, and keeps answering."""


@hxd.command()
@_config
def serve(config: Path) -> None:
    """Serve in the foreground until SIGTERM or Ctrl-C."""
    from hxd.daemon import run

    try:
        run.serve(config)
    except ConfigError as error:
        _give_up(error)


@hxd.command()
@_config
def check(config: Path) -> None:
    """Validate the configuration and everything it names; start nothing.

    Exits 0 when all is well, and 78 with one line per fault otherwise.
    """
    from hxd import config as settings
    from hxd.daemon.inspection import inspect

    try:
        loaded = settings.load(config)
        inspection = inspect(loaded)
        if findings := inspection.findings(loaded):
            raise ConfigError(findings)
    except ConfigError as error:
        _give_up(error)
    count = len(inspection.sources)
    click.echo(f"{loaded.origin}: OK, {count} model{'' if count == 1 else 's'}")


def _give_up(error: ConfigError) -> None:
    for finding in error.findings:
        click.echo(finding, err=True)
    sys.exit(ConfigError.EXIT_CODE)
