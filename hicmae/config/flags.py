"""Commands, and their flags from dataclasses: a field of `Settings` is a flag, which is checked.

A field has the name of the argument that it becomes; where the flag is spelled otherwise, it says
so. Settings are saved by their flags, in groups.
"""

import argparse
import inspect
import io
import logging
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from typing_extensions import dataclass_transform

from hicmae.io import EXPECTED, RESUMABLE, Stopped, describe

logger = logging.getLogger(__name__)

METAVARS = {int: "N", float: "X", str: "TEXT"}
RULES = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
Flags = Mapping[str, Mapping[str, Any]]  # by name the arguments of `add_argument`
Config = TypeVar("Config")
Configs = TypeVar("Configs")


def option(default: Any, description: str, must: str = "", **about: Any) -> Any:
    """Declare a dataclass field that is also a flag, of the field's name or named in `flag`.

    ``--help`` shows the description, the default and what `must` hold of each number, e.g. "> 0 and
    <= 1", but no `aliases` (older spellings). What is `positional` has no dashes. A resumed run may
    change what is `harmless`: where and how to compute, when to log, save and test. The rest is
    argparse's.
    """
    usual = {"flag": "", "aliases": (), "positional": False, "harmless": False}
    known = {name: about.pop(name, value) for name, value in usual.items()}
    known |= {"help": description, "must": must, "rest": about}
    return field(default=default, metadata=known)


harmless = partial(option, harmless=True)


def flag_of(item: Field) -> str:
    """Return the flag of a field, without dashes."""
    return item.metadata["flag"] or item.name


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Settings:
    """A group of flags, a frozen dataclass; ValueError names the one whose value is not allowed."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, must = getattr(self, item.name), item.metadata["must"]
            numbers = value if isinstance(value, tuple) else (value,)
            for sign, limit in map(str.split, must.split(" and ") if must else ()):
                if not all(n is None or RULES[sign](n, float(limit)) for n in numbers):
                    raise ValueError(f"--{flag_of(item)} must be {must}, got {value}")
        self._check()

    def _check(self) -> None:
        """Raise ValueError where settings do not go together."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad flag in one line instead of printing the whole usage.

    From then on whatever a command prints can be printed, also bytes of names as `os` has them.
    Flags are not abbreviated, or a new one would change what an old command means.
    """

    def __init__(self, *, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(allow_abbrev=allow_abbrev, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse flags, also ``--flag True`` and ``--flag=False`` as the authors' scripts say it."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        booleans = [a for a in self._actions if isinstance(a, argparse.BooleanOptionalAction)]
        flags = {flag for action in booleans for flag in action.option_strings}
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            flag, _, value = word.partition("=")
            for part in (flag, value) if value and flag in flags else (word,):
                if part.lower() not in ("true", "false") or not words or words[-1] not in flags:
                    words.append(part)
                elif part.lower() == "false":
                    yes = words[-1].replace("--no-", "--")
                    words[-1] = yes if yes != words[-1] else f"--no-{yes[2:]}"
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and say where the flags are described."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def new_parser(description: str | None, configs: Any = None, **defaults: Any) -> OneLineParser:
    """Make a parser of the fields of a NamedTuple of dataclasses; `defaults` replace theirs."""
    text, style = inspect.cleandoc(description or ""), argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=text, formatter_class=style)
    for config in configs.__annotations__.values() if configs else ():
        add_arguments(parser, config, **defaults)
    return parser


def add_arguments(parser: argparse.ArgumentParser, config: type, **defaults: Any) -> None:
    """Add a group of flags, one for each field; its title is the dataclass's first line."""
    group = parser.add_argument_group((config.__doc__ or "").splitlines()[0].rstrip("."))
    hints = typing.get_type_hints(config)
    for item in fields(config):
        flag, about, kind = flag_of(item), item.metadata, hints[item.name]
        default, options = defaults.get(flag, item.default), dict(about["rest"])
        if isinstance(kind, types.UnionType):  # X | None
            kind = typing.get_args(kind)[0]
        if typing.get_origin(kind) is tuple:
            kind, *others = typing.get_args(kind)
            options.setdefault("nargs", "+" if others == [...] else 1 + len(others))
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            is_plain = "choices" not in options and not about["positional"]
            metavar = METAVARS.get(kind) if is_plain else None
            options = {"metavar": metavar, "type": kind, **options}
        shown = " ".join(map(str, default)) if type(default) is tuple else default
        notes = [f"default: {shown}"] if shown not in (None, "") else []
        notes += [about["must"]] if about["must"] else []
        text = about["help"].replace("%", "%%") + (f" ({'; '.join(notes)})" if notes else "")
        name = flag if about["positional"] else f"--{flag}"
        group.add_argument(name, default=default, help=text, **options)
        if about["aliases"]:
            options |= {"dest": flag, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            group.add_argument(*[f"--{alias}" for alias in about["aliases"]], **options)


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return what the command line, or `argv`, says by flag, without defaults."""
    unset = object()
    namespace = argparse.Namespace(**{action.dest: unset for action in parser._actions})
    given = vars(parser.parse_args(argv, namespace))
    return {flag: value for flag, value in given.items() if value is not unset}


def parse_configs(
    parser: argparse.ArgumentParser, configs: type[Configs], given: Mapping[str, Any]
) -> Configs:
    """Return settings by what is given; a wrong one ends in one line and exit code 2."""
    flags = {**vars(parser.parse_args([])), **given}
    try:
        parsed = from_dict(configs, flags)
        return parsed.completed() if hasattr(parsed, "completed") else parsed
    except ValueError as error:
        parser.error(str(error))


def from_flags(flags: Mapping[str, Any], config: type[Config]) -> Config:
    """Build a dataclass, which checks them, from values by flag or alias; None: the default."""
    values: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]  # any dataclass will do
        names = (flag_of(item), *item.metadata["aliases"])
        value = next((flags[name] for name in names if flags.get(name) is not None), None)
        if isinstance(item.default, tuple) and not isinstance(value, (tuple, type(None))):
            value = tuple(value) if isinstance(value, list) else (value,)
        if value is not None:
            values[item.name] = value
    return config(**values)


def as_dict(configs: NamedTuple) -> dict[str, dict[str, Any]]:
    """Return the settings in groups by flag, for JSON and for checkpoints."""
    return {
        group: {flag_of(item): getattr(config, item.name) for item in fields(config)}
        for group, config in configs._asdict().items()
    }


def from_dict(configs: type[Configs], settings: Any) -> Configs:
    """Undo `as_dict`, or take what `flat_settings` takes; what is missing has its default."""
    flags, groups = flat_settings(settings), configs.__annotations__.items()
    return configs(**{name: from_flags(flags, kind) for name, kind in groups})


def flat_settings(args: Any) -> dict[str, Any]:
    """Return settings by flag, lists for tuples, from groups of flags, flags, or a Namespace."""
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    flat: dict[str, Any] = {}
    for name, value in args.items() if isinstance(args, Mapping) else ():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return {name: list(v) if isinstance(v, tuple) else v for name, v in flat.items()}


def command(
    usage: str | None,
    work: Callable[[argparse.Namespace], int | None],
    *configs: type,
    prog: str | None = None,
    flags: Flags | None = None,
    abbreviated: bool = False,
    **codes: Any,
) -> Callable[..., int]:
    """Return the `main` of a command: it parses flags, calls `work`, and returns an exit code.

    Its flags are the fields of the `configs`, which check them, and the `flags`, which may be
    `abbreviated`; --help begins with the docstring `usage`. A wrong flag ends with code 2; `codes`
    are arguments of `exit_code`.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = new_parser(usage)
        parser.prog = prog or parser.prog
        parser.allow_abbrev = abbreviated
        for config in configs:
            add_arguments(parser, config)
        for name, options in (flags or {}).items():
            parser.add_argument(name, **options)
        args = parser.parse_args(argv)
        logging.basicConfig(level=logging.INFO, format="%(message)s")

        def check() -> None:
            for config in configs:
                from_flags(vars(args), config)

        return exit_code(check) or exit_code(partial(work, args), **codes)

    return main


def exit_code(
    work: Callable[[], int | None],
    failed: int = 2,
    bad_data: int = 0,
    interrupted: tuple[int, str] = (130, "interrupted"),
    on_stderr: bool = False,
) -> int:
    """Run what a command does and return its exit code; an error is one line, without a trace.

    The code is that of `work`, or 0; `failed` after an error, but `bad_data`, where it is not 0,
    after a ValueError; `interrupted` at the keyboard, with what to say; RESUMABLE after Stopped.
    The line is logged, or goes to stderr with the name of the program; files of a log get the
    trace, too.
    """
    try:
        return work() or 0
    except Stopped as stopped:
        logger.warning("%s; start the same command again to go on (exit code 75)", stopped)
        return RESUMABLE
    except KeyboardInterrupt:
        code, text = interrupted
    except EXPECTED as error:
        code = bad_data if bad_data and isinstance(error, ValueError) else failed
        text = f"error: {describe(error)}"
        record = logging.LogRecord(__name__, logging.ERROR, "", 0, "%s", (error,), sys.exc_info())
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
    if on_stderr:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {text}\n")
    else:
        logger.error("%s", text)
    return code
