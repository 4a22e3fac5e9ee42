"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from ghn_fast._version import __version__
from ghn_fast.cli import nets
from ghn_fast.cli.draw import draw
from ghn_fast.cli.eval import evaluate
from ghn_fast.cli.fit import fit
from ghn_fast.cli.labels import measure, properties, search
from ghn_fast.cli.predict import predict
from ghn_fast.cli.train import plot, train

app = typer.Typer(
    name="ghn-fast",
    help="Predict all parameters of neural networks, and train and evaluate what predicts them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(predict)
app.command()(fit)
app.command()(train)
app.command("eval")(evaluate)
app.command()(draw)
app.command()(plot)
for command in (measure, properties, search):
    nets.app.command()(command)
app.add_typer(nets.app, name="nets")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ghn-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
