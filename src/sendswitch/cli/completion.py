"""`completion`: print the script with which a shell completes commands and options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined] # not in its __all__

from sendswitch.cli.output import Session


def completion(
    context: typer.Context,
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print the completion script of a shell. For bash: `eval "$(sendswitch completion bash)"` in ~/.bashrc."""
    session: Session = context.obj
    script = get_completion_script(prog_name="sendswitch", complete_var="_SENDSWITCH_COMPLETE", shell=shell)
    session.done(script, shell=shell, script=script)
