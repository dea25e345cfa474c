"""Write docs/man from the code: sendswitch(1), a page for each noun, and sendswitch.toml(5).

Read one with `man -l docs/man/sendswitch.1`. A test in tests/house holds the pages to what this gives.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from sendswitch.cli.main import app
from sendswitch.config import reference

EXIT = (
    ("0", "done"),
    ("1", "failed, or found a problem"),
    ("2", "invalid usage, configuration or search"),
    ("3", "not found"),
    ("4", "refused: the thing is not in a state that allows this"),
    ("75", "try again later (EX_TEMPFAIL of sysexits.h)"),
)


def escaped(text: str) -> str:
    """Text as roff takes it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())


def head(name: str, section: int, what: str) -> str:
    """A page's title and its line for apropos."""
    return f'.TH {name.upper()} {section} "" "SendSwitch" "SendSwitch"\n.SH NAME\n{escaped(name)} \\- {escaped(what)}\n'


def argument(parameter: Any) -> str:
    """What an argument is called on the page."""
    name: str = parameter.metavar or parameter.name.upper().strip("_")
    return name.strip("[]").removesuffix("...").strip("[]")


def synopsis(command: Any, path: str) -> str:
    """How a command is called."""
    words = [f".B {escaped(path)}"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = argument(parameter)
            many = " ..." if parameter.nargs != 1 else ""
            words.append(f"\\fI{escaped(name)}\\fR{many}" if parameter.required else f"[\\fI{escaped(name)}\\fR{many}]")
        elif parameter.name != "help":
            words.append(f"[\\fB{escaped(parameter.opts[0])}\\fR{'' if parameter.is_flag else ' ...'}]")
    return "\n".join(words) + "\n"


def described(command: Any, path: str) -> str:
    """A command: its synopsis, what it does, and its options."""
    text = f".SS {escaped(path)}\n{synopsis(command, path)}.PP\n{escaped(' '.join((command.help or '').split()))}\n"
    for parameter in command.params:
        help_ = getattr(parameter, "help", "") or ""
        if parameter.name == "help" or not help_:
            continue
        name = parameter.opts[0] if parameter.param_type_name == "option" else argument(parameter)
        default = parameter.default
        shown = f" Default: {default}." if isinstance(default, str | int) and default not in ("", False, True) else ""
        text += f".TP\n.B {escaped(name)}\n{escaped(help_ + shown)}\n"
    return text


def tail() -> str:
    """What every page of section 1 ends with."""
    text = ".SH EXIT STATUS\n" + "".join(f".TP\n.B {code}\n{escaped(what)}\n" for code, what in EXIT)
    text += ".SH FILES\n.TP\n.I /etc/sendswitch/sendswitch.toml\nthe configuration, and\n.I conf.d/*.toml\nbeside it\n"
    return text + ".SH SEE ALSO\n.BR sendswitch (1),\n.BR sendswitch.toml (5),\n.BR postconf (1),\n.BR master (5)\n"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    group: Any = typer.main.get_command(app)
    single = {name: command for name, command in group.commands.items() if not hasattr(command, "commands")}
    nouns = {name: command for name, command in group.commands.items() if hasattr(command, "commands")}
    text = head("sendswitch", 1, "a programmable mail switch for Postfix")
    text += (
        ".SH SYNOPSIS\n.B sendswitch\n[\\fB\\-\\-config\\fR \\fIFILE\\fR] [\\fB\\-\\-json\\fR] \\fICOMMAND\\fR ...\n"
    )
    text += ".SH DESCRIPTION\nEvery user of a mail domain can put code of their own between Postfix and their mailbox."
    text += " Both global options may stand anywhere on the line.\n.SH COMMANDS\n"
    text += "".join(described(command, f"sendswitch {name}") for name, command in single.items())
    text += ".SS Nouns\n"
    for name, command in nouns.items():
        text += f".TP\n.BR sendswitch\\-{name} (1)\n{escaped(command.help or '')}\n"
    found = {"sendswitch.1": text + tail()}
    for name, command in nouns.items():
        page = head(f"sendswitch-{name}", 1, (command.help or name).rstrip(".")) + ".SH COMMANDS\n"
        for verb, inner in command.commands.items():
            page += described(inner, f"sendswitch {name} {verb}")
        found[f"sendswitch-{name}.1"] = page + tail()
    return found | {"sendswitch.toml.5": configuration()}


def configuration() -> str:
    """The page of the configuration."""
    text = head("sendswitch.toml", 5, "configuration of SendSwitch") + ".SH DESCRIPTION\n"
    text += escaped(" ".join(reference.HEAD.split("\n\n", 1)[1].replace("`", "").split())) + "\n"
    for name, model in reference.sections():
        text += f".SH {escaped(reference.header(name))}\n{escaped(inspect.getdoc(model) or '')}\n"
        for key, field in model.model_fields.items():
            told = f"{field.description} Default: {reference.default(key, field)}."
            text += f".TP\n.B {escaped(key)}\n{escaped(told)}\n"
    return text + ".SH SEE ALSO\n.BR sendswitch (1)\n"


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent.parent / "docs" / "man"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for file, text in pages().items():
        (folder / file).write_text(text)
    sys.stdout.write(f"{len(pages())} pages in docs/man\n")
