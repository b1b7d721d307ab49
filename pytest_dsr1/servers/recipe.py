"""A recipe, read from TOML: which arguments and variables a server gets, and what that depends on."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_dsr1.core.config import Point
from pytest_dsr1.servers.arguments import Value, argument_problem, parse_server_arg, variable_problem

#: What --tp means where neither it nor a recipe says otherwise.
DEFAULT_TP = 8
DEFAULT_COMMAND = ("{python}", "-m", "sglang.launch_server")
#: Recipe for a machine without GPUs.
CPU = "cpu"

_SHIPPED = Path(__file__).parent / "recipes"
_FIELDS = (
    "summary", "source", "extends", "model", "family", "gpus", "tp", "command", "environment", "arguments", "when",
)  # fmt: skip
_CONDITIONS = ("isl", "osl", "conc_above", "conc_below")
_RULE_FIELDS = (*_CONDITIONS, "environment", "arguments")
_PLACEHOLDER = re.compile(r"\{\w*\}")


class RecipeError(ValueError):
    """A recipe that cannot be used or chosen: what was tried, what was found, what to do."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a recipe changes at some points. Every condition that is not None must hold.

    :param conc_above: Concurrencies above this one, itself excluded; likewise `conc_below`.
    """

    isl: int | None = None
    osl: int | None = None
    conc_above: int | None = None
    conc_below: int | None = None
    arguments: Mapping[str, Value] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def applies(self, point: Point) -> bool:
        """Whether `point` is among its points."""
        return (
            self.isl in (None, point.isl)
            and self.osl in (None, point.osl)
            and (self.conc_above is None or point.conc > self.conc_above)
            and (self.conc_below is None or point.conc < self.conc_below)
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a server is launched, with all that it extends merged in.

    :param name: Of a shipped recipe; the file name of another.
    :param model: Served when nobody says `--model`; None: somebody must.
    :param family: What the name of a model contains that the automatic choice takes it for; None: of any.
    :param gpus: What the name of a GPU contains that the automatic choice takes it for; none: only by name.
    :param arguments: Name to value, in the order of the command line; False leaves one out.
    :param environment: Variable to value; None leaves one out.
    :param rules: In order; a later one wins.
    """

    name: str
    summary: str = ""
    source: str = ""
    model: str | None = None
    family: str | None = None
    gpus: tuple[str, ...] = ()
    tp: int = DEFAULT_TP
    command: tuple[str, ...] = DEFAULT_COMMAND
    arguments: Mapping[str, Value] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    def fits_gpus(self, gpus: Sequence[str]) -> bool:
        """Whether each of `gpus` is one that it is for."""
        return all(any(pattern.lower() in gpu.lower() for pattern in self.gpus) for gpu in gpus)

    def fits_model(self, model: str | None) -> bool:
        """Whether `model` is of its family; its own, when None, is."""
        return self.family is None or model is None or self.family.lower() in model.lower()

    def at(self, point: Point) -> tuple[dict[str, Value], dict[str, str | None]]:
        """Arguments and variables at `point`."""
        arguments, environment = dict(self.arguments), dict(self.environment)
        for rule in self.rules:
            if rule.applies(point):
                arguments |= rule.arguments
                environment |= rule.environment
        return arguments, environment


def recipe_names() -> tuple[str, ...]:
    """The shipped recipes."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by its name, or the one in a file.

    :param name_or_path: A path has a / or ends in .toml.
    :raises RecipeError: There is none, or it or one that it extends says what no recipe can.
    """
    return _load(_find(name_or_path, Path(), "--recipe"), ())


def recipe_for(gpus: Sequence[str], model: str | None) -> Recipe:
    """The shipped recipe for this machine; one for a family of models goes before one for any.

    :param gpus: Names as `visible_gpus` has them; none: the CPU's recipe.
    :param model: As typed; None: whichever the recipe serves.
    :raises RecipeError: None fits all GPUs and the model.
    """
    if not gpus:
        return load_recipe(CPU)
    for_gpus = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.fits_gpus(gpus)]
    fitting = [recipe for recipe in for_gpus if recipe.fits_model(model)]
    if fitting:
        return min(fitting, key=lambda recipe: recipe.family is None)
    found = " and ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    # "Which GPU?" is answered before "which model?".
    why = "; ".join(f"{recipe.name} is for models named …{recipe.family}…, not {model}" for recipe in for_gpus)
    raise RecipeError(f"no recipe fits {found}{f' ({why})' if why else ''}; {_choices('--recipe')}")


def _choices(option: str) -> str:
    return f"{option} takes {', '.join(recipe_names())}, or the path of a .toml file"


def _find(name_or_path: str, folder: Path, asked_by: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return folder / Path(name_or_path).expanduser()
    if name_or_path not in recipe_names():
        raise RecipeError(f"{asked_by} {name_or_path!r}: no such recipe; {_choices(asked_by)}")
    return _SHIPPED / f"{name_or_path}.toml"


def _load(path: Path, extending: tuple[Path, ...]) -> Recipe:
    """:param extending: The files that led here, each extending the next."""
    if any(path.resolve() == other.resolve() for other in extending):
        chain = " extends ".join(str(each) for each in (*extending, path))
        raise RecipeError(f"a recipe cannot extend itself: {chain}")
    where = str(path)
    table = _read(path)
    _refuse_unknown(table, _FIELDS, where)
    base = Recipe(name="")
    if "extends" in table:
        base = _load(_find(_text(table, "extends", where), path.parent, f"{where}: extends"), (*extending, path))
    arguments, environment = _arguments(table, where), _environment(table, where)
    own_rules = _rules(table, where)
    return Recipe(
        name=path.stem if path.parent == _SHIPPED else path.name,
        summary=_text(table, "summary", where) if "summary" in table else "",
        source=_text(table, "source", where) if "source" in table else base.source,
        model=_text(table, "model", where) if "model" in table else base.model,
        family=_text(table, "family", where) if "family" in table else base.family,
        gpus=_texts(table, "gpus", where, may_be_empty=True) if "gpus" in table else (),
        tp=_count(table, "tp", where) if "tp" in table else base.tp,
        command=_command(table, where) if "command" in table else base.command,
        arguments={**base.arguments, **arguments},
        environment={**base.environment, **environment},
        # Whoever extends has the last word, over rules too, as --server-arg has.
        rules=(*_without(base.rules, arguments, environment), *own_rules),
    )


def _without(
    rules: Sequence[Rule], arguments: Mapping[str, Value], environment: Mapping[str, str | None]
) -> tuple[Rule, ...]:
    """`rules`, less what they say of these arguments and variables."""
    return tuple(
        replace(
            rule,
            arguments={name: value for name, value in rule.arguments.items() if name not in arguments},
            environment={name: value for name, value in rule.environment.items() if name not in environment},
        )
        for rule in rules
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: no recipe can be read there ({error.strerror}); {_choices('--recipe')}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error


def _rules(table: Mapping[str, Any], where: str) -> tuple[Rule, ...]:
    tables = table.get("when", [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise RecipeError(f"{where}: when is {_shown(tables)}, must be tables: [[when]]")
    return tuple(_rule(each, f"{where}, [[when]] {number}") for number, each in enumerate(tables, start=1))


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    _refuse_unknown(table, _RULE_FIELDS, where)
    conditions = {key: _count(table, key, where) for key in _CONDITIONS if key in table}
    if not conditions:
        raise RecipeError(f"{where}: has no condition; known are {', '.join(_CONDITIONS)}")
    arguments, environment = _arguments(table, where), _environment(table, where)
    if not arguments and not environment:
        raise RecipeError(f"{where}: changes nothing; it needs arguments or environment")
    return Rule(**conditions, arguments=arguments, environment=environment)


def _arguments(table: Mapping[str, Any], where: str) -> dict[str, Value]:
    arguments: dict[str, Value] = {}
    for name, raw in _table(table, "arguments", where).items():
        value = _value(raw, f"{where}: arguments.{name}")
        # Left out, it is no argument: nothing is wrong with its value.
        if problem := argument_problem(name, "-" if value is False else value):
            raise RecipeError(f"{where}: arguments.{name}: {problem}")
        arguments[name] = value
    return arguments


def _value(raw: object, where: str) -> Value:
    if isinstance(raw, bool | int | float | str):
        return raw
    # In Python, True is an int.
    if isinstance(raw, list) and raw and {type(each) for each in raw} <= {str, int, float}:
        return tuple(str(each) for each in raw)
    raise RecipeError(f"{where} is {_shown(raw)}, must be true, false, a number, a text, or a list of numbers or texts")


def _environment(table: Mapping[str, Any], where: str) -> dict[str, str | None]:
    environment: dict[str, str | None] = {}
    for name, raw in _table(table, "environment", where).items():
        if raw is not False and (isinstance(raw, bool) or not isinstance(raw, str | int | float)):
            raise RecipeError(
                f"{where}: environment.{name} is {_shown(raw)}, must be a text or a number, or false to leave it out"
            )
        value = None if raw is False else str(raw)
        if problem := variable_problem(name, value or ""):
            raise RecipeError(f"{where}: environment.{name}: {problem}")
        environment[name] = value
    return environment


def _command(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    command = _texts(table, "command", where)
    for word in command:
        if unknown := set(_PLACEHOLDER.findall(word)) - {"{python}"}:
            raise RecipeError(f"{where}: command has {', '.join(sorted(unknown))}; the only placeholder is {{python}}")
        if word.startswith("--"):
            try:
                parse_server_arg(word)
            except ValueError as error:
                raise RecipeError(f"{where}: command: {error}") from None
    return command


def _table(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: {key} is {_shown(value)}, must be a table: [{key}]")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{where}: {key} is {_shown(value)}, must be a non-empty text")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    value = table[key]
    if isinstance(value, list) and all(isinstance(each, str) and each for each in value) and (value or may_be_empty):
        return tuple(value)
    raise RecipeError(f"{where}: {key} is {_shown(value)}, must be a list of non-empty texts")


def _count(table: Mapping[str, Any], key: str, where: str) -> int:
    value = table[key]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise RecipeError(f"{where}: {key} is {_shown(value)}, must be a whole number from 1")


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := sorted(table.keys() - set(known)):
        raise RecipeError(f"{where}: has {', '.join(unknown)}, which means nothing; known are {', '.join(known)}")


def _shown(value: object) -> str:
    return repr(value)[:60]
