"""Command-line flags made from the fields of dataclasses, so that each setting stands once."""

import argparse
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

Config = TypeVar("Config")
Configs = TypeVar("Configs")


def option(
    default: Any,
    description: str,
    *,
    flag: str = "",
    aliases: Sequence[str] = (),
    choices: Sequence[Any] | None = None,
    metavar: str | None = None,
    harmless: bool = False,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: value without the flag.
        description: one line for ``--help``; the default is appended.
        flag: its name without dashes, where it is not that of the field.
        aliases: older spellings, which ``--help`` does not show.
        choices: the allowed values.
        metavar: how the value is called in ``--help``.
        harmless: whether a resumed run may change it and is still the same run: it says where and
            how to compute, or when to log, save and test.
    """
    metadata = {"help": description, "flag": flag, "aliases": aliases, "choices": choices,
                "metavar": metavar, "harmless": harmless}  # fmt: skip
    return field(default=default, metadata=metadata)


harmless = partial(option, harmless=True)


def flag_of(field: Field) -> str:
    """Return the flag of a field, without dashes."""
    return field.metadata["flag"] or field.name


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad flag in one line instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and say where the flags are described."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def new_parser(description: str | None, configs: Any = None, **defaults: Any) -> OneLineParser:
    """Make a parser that takes no abbreviated flags.

    Args:
        description: shown by ``--help`` as it is.
        configs: NamedTuple of dataclasses whose fields become flags.
        defaults: other defaults than the fields' own, by flag.
    """
    parser = OneLineParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for config in configs.__annotations__.values() if configs else ():
        add_arguments(parser, config, **defaults)
    return parser


def add_arguments(parser: argparse.ArgumentParser, config: type, **defaults: Any) -> None:
    """Add a group of flags, one for each field; its title is the dataclass's first line."""
    group = parser.add_argument_group((config.__doc__ or "").splitlines()[0].rstrip("."))
    hints = typing.get_type_hints(config)
    for item in fields(config):
        default = defaults.get(flag_of(item), item.default)
        text = item.metadata["help"].replace("%", "%%")
        if default not in (None, ""):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
        options = {"dest": flag_of(item), **_value_options(item, hints[item.name])}
        group.add_argument(f"--{flag_of(item)}", default=default, help=text, **options)
        if item.metadata["aliases"]:
            hidden = [f"--{name}" for name in item.metadata["aliases"]]
            options |= {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            group.add_argument(*hidden, **options)


def _value_options(item: Field, annotation: Any) -> dict[str, Any]:
    """Return what argparse must know of a flag's value."""
    if isinstance(annotation, types.UnionType):  # X | None
        annotation = typing.get_args(annotation)[0]
    several = typing.get_origin(annotation) is tuple
    kind = typing.get_args(annotation)[0] if several else annotation
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices, metavar = item.metadata["choices"], item.metadata["metavar"]
    options = {"type": kind, "choices": choices, "nargs": "+" if several else None}
    return {**options, "metavar": metavar or (None if choices else kind.__name__.upper())}


def from_flags(flags: Mapping[str, Any], config: type[Config]) -> Config:
    """Build a dataclass from values by flag; ValueError from its own checks."""
    values = {
        item.name: flags[flag_of(item)]
        for item in fields(config)  # type: ignore[arg-type]  # any dataclass will do
        if flag_of(item) in flags
    }
    return config(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def parse_configs(
    parser: argparse.ArgumentParser,
    configs: type[Configs],
    argv: Sequence[str] | None,
    complete: Callable[[Configs], Configs] = lambda parsed: parsed,
) -> Configs:
    """Parse the command line into a NamedTuple of dataclasses.

    Args:
        parser: of `new_parser`.
        configs: the NamedTuple.
        argv: replaces the command line.
        complete: fills in what follows from several settings; may raise ValueError.

    Raises:
        SystemExit: code 2 after one line that says which setting is wrong.
    """
    flags = vars(parser.parse_args(argv))
    try:
        groups = configs.__annotations__.items()
        return complete(configs(**{name: from_flags(flags, kind) for name, kind in groups}))
    except ValueError as error:
        parser.error(str(error))


def as_dict(configs: NamedTuple) -> dict[str, dict[str, Any]]:
    """Return the settings in groups by flag, for JSON and for checkpoints."""
    return {
        group: {flag_of(item): getattr(config, item.name) for item in fields(config)}
        for group, config in configs._asdict().items()
    }


def from_dict(configs: type[Configs], settings: Mapping[str, Mapping[str, Any]]) -> Configs:
    """Undo `as_dict`; groups and flags that are missing have their defaults."""
    groups = configs.__annotations__.items()
    return configs(**{name: from_flags(settings.get(name, {}), kind) for name, kind in groups})


def all_flags(groups: Any) -> dict[str, Any]:
    """Return the flags of all groups, lists for tuples; {} for the settings of other programs."""
    if not isinstance(groups, Mapping):
        return {}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for group in groups.values()
        if isinstance(group, Mapping)
        for name, value in group.items()
    }


def check_positive(config: Any, *names: str) -> None:
    """Refuse settings that are not above 0."""
    check(config, names, lambda value: value > 0, "be greater than 0")


def check_not_negative(config: Any, *names: str) -> None:
    """Refuse settings below 0."""
    check(config, names, lambda value: value >= 0, "not be negative")


def check_share(config: Any, *names: str) -> None:
    """Refuse settings outside 0..1."""
    check(config, names, lambda value: 0 <= value <= 1, "be a share, 0 <= value <= 1")


def check(config: Any, names: Sequence[str], holds: Callable[[Any], bool], rule: str) -> None:
    """Refuse settings for which `rule` does not hold; None is no setting."""
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name in names and value is not None and not holds(value):
            raise ValueError(f"--{flag_of(item)} must {rule}, got {value}")
