"""Command-line flags made from the fields of frozen dataclasses, so each setting stands once."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

Config = TypeVar("Config")
Configs = TypeVar("Configs")


def option(
    default: Any,
    description: str,
    *,
    choices: Sequence[Any] | None = None,
    aliases: Sequence[str] = (),
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: value without the flag; None makes the flag optional with no value.
        description: one line for ``--help``; the default is appended.
        choices: the allowed values.
        aliases: other spellings of the flag, without dashes.
        metavar: how the value is called in ``--help``.
    """
    metadata = {"help": description, "choices": choices, "aliases": aliases, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad flag in one line instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and say where the flags are described."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def new_parser(description: str) -> OneLineParser:
    """Make a parser that knows neither abbreviated flags nor flags nobody declared."""
    return OneLineParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _value_type(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value and whether the flag takes several."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def add_arguments(parser: argparse.ArgumentParser, config: type, **defaults: Any) -> None:
    """Add one titled group of flags, one for each field of a dataclass.

    Args:
        parser: gets the group; its title is the first line of the dataclass's docstring.
        config: a dataclass whose fields were declared with `option`.
        defaults: other defaults than the fields' own, by field name.
    """
    title = (config.__doc__ or config.__name__).splitlines()[0].rstrip(".")
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        default = defaults.get(field.name, field.default)
        names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
        value_type, several = _value_type(hints[field.name])
        options: dict[str, Any] = {"default": default, "dest": field.name}
        options["help"] = field.metadata["help"].replace("%", "%%") + _shown(default)
        if value_type is bool:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
            continue
        options |= {"type": value_type, "choices": field.metadata["choices"]}
        options["metavar"] = field.metadata["metavar"] or (
            None if options["choices"] else value_type.__name__.upper()
        )
        if several:
            options["nargs"] = "+"
        group.add_argument(*names, **options)


def _shown(default: Any) -> str:
    if default in (None, ""):
        return ""
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f" (default: {default})"


def from_args(args: argparse.Namespace, config: type[Config]) -> Config:
    """Build the dataclass from parsed flags; its `__post_init__` checks them.

    Raises:
        ValueError: from the dataclass's own checks.
    """
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # any dataclass will do
        value = getattr(args, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**values)


def parse_configs(
    parser: argparse.ArgumentParser, configs: type[Configs], argv: Sequence[str] | None
) -> Configs:
    """Parse the command line; a setting that fails its dataclass's check ends the run.

    Args:
        parser: knows the flags of all the dataclasses.
        configs: NamedTuple whose fields are annotated with the dataclasses.
        argv: replaces the command line.

    Raises:
        SystemExit: code 2 after one line that says what is wrong.
    """
    args = parser.parse_args(argv)
    try:
        return configs(**{n: from_args(args, c) for n, c in configs.__annotations__.items()})
    except ValueError as error:
        parser.error(str(error))


def as_dict(configs: NamedTuple) -> dict[str, dict[str, Any]]:
    """Return the settings as plain dicts, for JSON and for checkpoints."""
    return {name: dataclasses.asdict(config) for name, config in configs._asdict().items()}
