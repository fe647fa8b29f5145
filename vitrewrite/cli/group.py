"""The group of all commands, and the options and arguments that several of them take."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from ..text import did_you_mean, shown
from ..version import __version__
from . import completion
from .common import PATH, keep_profile
from .output import Output, colour, silence, speak_up
from .trusting import trust_unseen

OF_SPECS = """\b
KEY=VALUE is one of
  NAME=VALUE         a param of the spec: rank=4
  PASS.OPTION=VALUE  an option of a pass: lora.rank=4, a list as [4,8,0,8]
  tune.NAME=VALUE    a setting of training: tune.lr=1e-3
  model=NAME         of timm, an alias, hf:NAME, or FILE.py:CALLABLE
  model.ARG=VALUE    for its constructor; num_classes=10 and img_size=384 alone do
  weights=WHICH      random, pretrained, or a file
  data=DATA  seed=INT  device=cpu|cuda  input=1x3x224x224  delta=FILE
'vitrewrite explain overrides' says more.
"""
OF_MODELS = """\b
KEY=VALUE is one of
  ARG=VALUE          for the constructor of the model: num_classes=10, depth=3
  input=SHAPE        what it is called with: input=1x3x224x224
"""
OF_FOLDERS = """\b
model=FILE.py:CALLABLE names the model of the folder, where it is code of yours.
"""
OF_PASSES = """\b
KEY=VALUE is an option of the pass, such as rank=4; 'vitrewrite explain PASS' lists them.
"""
_EPILOGS = {
    "[KEY=VALUE]...": OF_SPECS, "[MODEL.KEY=VALUE]...": OF_MODELS,
    "[model=FILE.py:CALLABLE]": OF_FOLDERS, "[OPTION=VALUE]...": OF_PASSES,
    "TARGET... [KEY=VALUE]...": OF_SPECS, "SPEC... [KEY=VALUE]...": OF_SPECS,
}  # fmt: skip


_SPECS = {"spec", "specs", "target", "targets", "model"}  # arguments that may be specs


class Commands(click.Group):
    """A group that tells the command that was probably meant, and gives all what all take."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """As click does; each command gets -q, -v, words to complete and a page on KEY=VALUE."""
        if not isinstance(cmd, click.Group):
            cmd.params += [*_trusting(cmd), *_everywhere()]
        for parameter in cmd.params:
            completion.attach(parameter)
            if isinstance(parameter, click.Argument) and parameter.metavar in _EPILOGS:
                cmd.epilog = _EPILOGS[parameter.metavar]
        super().add_command(cmd, name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does; an unknown name gets the nearest one, whatever its case."""
        known = args[0].startswith("-") or ctx.resilient_parsing
        if not known and self.get_command(ctx, args[0]) is None:
            near = did_you_mean(args[0], self.commands)
            ctx.fail(
                f"No such command {shown(args[0])}." + (f" {near.capitalize()}" if near else "")
            )
        return super().resolve_command(ctx, args)


class Root(Commands):
    """All commands: what they print waits until the end where it is JSON."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; whether JSON is asked for counts for errors in the rest too."""
        ctx.color = colour()
        ctx.ensure_object(Output).as_json |= "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; what waited is printed, unless there are errors to go with it."""
        output = ctx.ensure_object(Output)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of libraries are not for users of the command
            try:
                result = super().invoke(ctx)
            except click.exceptions.Exit:
                output.finish()
                raise
            except KeyboardInterrupt:  # click would print an empty line, wherever stderr goes
                if sys.stderr.isatty():
                    click.echo(err=True)  # behind the ^C
                raise click.Abort from None
            output.finish()
            return result


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="vitrewrite %(version)s")
@click.option("--debug", is_flag=True, help="Show Python tracebacks.")
def cli(debug: bool) -> None:
    """Rewrites vision transformers by specs: verified, readable, standalone.

    Words are completed by bash, zsh and fish; in bash after

    \b
      eval "$(_VITREWRITE_COMPLETE=bash_source vitrewrite)"
    """


def _trusting(cmd: click.Command) -> list[click.Parameter]:
    """`--trust`, where a spec is read and the command does not have it for folders already."""
    names = {parameter.name for parameter in cmd.params}
    reads = names & _SPECS and not names & {"trust", "path"}  # `cp` only copies
    return [trust_unseen()] if reads else []


def _everywhere() -> list[click.Parameter]:
    """The options of every command."""
    return [
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=silence,
            help="Print errors only, and JSON.",
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, callback=speak_up,
            help="Tell each step, and the warnings of libraries.",
        ),
    ]  # fmt: skip


def overrides_alone(command: Callable[..., Any]) -> Callable[..., Any]:
    """KEY=VALUE arguments of a spec."""
    return click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)


def overrides_of_model(command: Callable[..., Any]) -> Callable[..., Any]:
    """KEY=VALUE arguments of a model."""
    return click.argument("overrides", nargs=-1, metavar="[MODEL.KEY=VALUE]...")(command)


def overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """KEY=VALUE arguments, and the file of measurements that `sensitive(...)` uses."""
    return click.option(
        "--profile",
        type=PATH,
        expose_value=False,
        callback=keep_profile,
        help="Measurements of 'vitrewrite profile'; without, 'sensitive(...)' runs data=DATA.",
    )(overrides_alone(command))


MARKS = {
    True: click.style("ok   ", fg="green"), False: click.style("FAILS", fg="red", bold=True),
    None: click.style("open ", fg="yellow"),
}  # fmt: skip
COUNT = click.IntRange(min=1)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
