"""A recipe, read from TOML: a server's arguments and variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec.structs import asdict, replace

from pytest_dsr1.core.config import Point
from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers.launch import DEFAULT_HOST, Launch, Value, check_argument, check_variable

#: The recipe for a machine without GPUs.
CPU = "cpu"
#: The recipe of the embedded engine. It names no GPU, so only its name chooses it.
REFERENCE = "reference"

_SHIPPED = Path(__file__).parent / "recipes"
_PLACEHOLDER = re.compile(r"\{\w*\}")

Count = Annotated[int, msgspec.Meta(ge=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Command = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments and variables.

    :param arguments: Name to `Value`, in the order of the command line; False leaves the argument out.
    :param environment: Variable to text or number; False leaves the variable out.
    """

    # Not typed further: msgspec's errors do not name the key of a mapping.
    arguments: Mapping[str, Any] = {}
    environment: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        for table, values, check in (
            ("arguments", self.arguments, check_argument),
            ("environment", self.environment, check_variable),
        ):
            for name, value in values.items():
                _require(f"{table}.{name}", check, name, value)

    def without(self, other: _Settings) -> Self:
        """The same, less what `other` sets."""
        return replace(
            self,
            arguments={name: value for name, value in self.arguments.items() if name not in other.arguments},
            environment={name: value for name, value in self.environment.items() if name not in other.environment},
        )


def _require(where: str, check: Callable[[str, object], None], name: str, value: object) -> None:
    try:
        check(name, value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


class When(_Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe changes at points for which all of its conditions hold.

    :param conc_above: Lower bound of the concurrency, itself excluded.
    :param conc_below: Upper bound of the concurrency, itself excluded.
    """

    isl: Count | None = None
    osl: Count | None = None
    conc_above: Count | None = None
    conc_below: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.isl, self.osl, self.conc_above, self.conc_below) == (None, None, None, None):
            raise ValueError("has no condition; the conditions are isl, osl, conc_above, conc_below")

    def applies(self, point: Point) -> bool:
        """Whether the conditions hold at `point`."""
        return (
            self.isl in (None, point.isl)
            and self.osl in (None, point.osl)
            and (self.conc_above is None or point.conc > self.conc_above)
            and (self.conc_below is None or point.conc < self.conc_below)
        )


class RecipeFile(_Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a recipe file.

    :param summary: Printed by `--print-launch`.
    :param source: Where the arguments come from.
    :param extends: A shipped recipe's name, or a path relative to this file.
    :param model: Served unless `--model` is typed; None: `--model` is required.
    :param family: Part of the names of the models that the automatic choice uses it for; None: all models.
    :param gpus: Parts of the names of the GPUs that the automatic choice uses it for; none: chosen by name only.
    :param when: In order; a later one overrides an earlier one.
    """

    summary: Text = ""
    source: Text = ""
    extends: Text | None = None
    model: Text | None = None
    family: Text | None = None
    gpus: tuple[Text, ...] = ()
    tp: Count = 8
    command: Command = ("{python}", "-m", "sglang.launch_server")
    when: tuple[When, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in self.command:
            if unknown := sorted(set(_PLACEHOLDER.findall(word)) - {"{python}"}):
                raise ValueError(f"command: has {', '.join(unknown)}; the only placeholder is {{python}}")
            name, equals, value = word.removeprefix("--").partition("=")
            if word.startswith("--"):
                _require("command", check_argument, name, value if equals else True)


class Recipe(RecipeFile, frozen=True, kw_only=True):
    """How a server is launched, with everything merged in that the recipe extends.

    :param name: Of a shipped recipe; the file name of any other.
    """

    name: str

    def fits_gpus(self, gpus: Sequence[str]) -> bool:
        """Whether the recipe is for each of `gpus`."""
        return all(any(pattern.lower() in gpu.lower() for pattern in self.gpus) for gpu in gpus)

    def fits_model(self, model: str | None) -> bool:
        """Whether the recipe is for `model`; None stands for its own."""
        return self.family is None or model is None or self.family.lower() in model.lower()

    def overridden(self, own: _Settings) -> dict[str, Any]:
        """The fields that `own` changes. It has the last word over inherited [[when]] too."""
        return {
            "arguments": {**self.arguments, **own.arguments},
            "environment": {**self.environment, **own.environment},
            "when": tuple(each.without(own) for each in self.when),
        }

    def with_typed(
        self,
        *,
        model: str | None = None,
        tp: int | None = None,
        arguments: Mapping[str, Value] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Recipe:
        """The recipe with what the user typed: --model, --tp, --server-arg, --server-env."""
        typed = _Settings(arguments=arguments or {}, environment=environment or {})
        return replace(
            self,
            model=self.model if model is None else model,
            tp=self.tp if tp is None else tp,
            **self.overridden(typed),
        )

    def launch_at(self, point: Point, port: int, python: str) -> Launch:
        """The launch for `point`, where [[when]] overrides the rest of the recipe.

        :param python: The interpreter that stands for {python}.
        :raises ServerError: No model is named.
        """
        if self.model is None:
            raise ServerError(f"recipe {self.name} names no model; type --model NAME|PATH")
        arguments = {
            "model-path": self.model,
            "host": DEFAULT_HOST,
            "port": port,
            "tensor-parallel-size": self.tp,
            **self.arguments,
        }
        variables = dict(self.environment)
        for each in self.when:
            if each.applies(point):
                arguments |= each.arguments
                variables |= each.environment
        return Launch(
            recipe=self.name,
            command=tuple(word.replace("{python}", python) for word in self.command),
            arguments={name: value for name, value in arguments.items() if value is not False},
            environment={name: str(value) for name, value in sorted(variables.items()) if value is not False},
        )


def recipe_names() -> tuple[str, ...]:
    """The shipped recipes for SGLang, without that of the embedded engine."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml") if path.stem != REFERENCE))


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by its name, or the one in a file.

    :param name_or_path: A path has a / or ends in .toml.
    :raises ServerError: There is none, or it or one that it extends is invalid.
    """
    return _load(_find(name_or_path, Path(), "--recipe"), ())


def recipe_for(gpus: Sequence[str], model: str | None) -> Recipe:
    """The shipped recipe for this machine; one for the model's family goes first.

    :param gpus: Names as `visible_gpus` has them; none: the CPU's recipe.
    :param model: As typed; None: the recipe's.
    :raises ServerError: None fits all GPUs and the model.
    """
    if not gpus:
        return load_recipe(CPU)
    for_gpus = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.fits_gpus(gpus)]
    fitting = [recipe for recipe in for_gpus if recipe.fits_model(model)]
    if fitting:
        return min(fitting, key=lambda recipe: recipe.family is None)
    found = " and ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    why = "; ".join(f"{recipe.name} is for models named …{recipe.family}…, not {model}" for recipe in for_gpus)
    raise ServerError(f"no recipe fits {found}{f' ({why})' if why else ''}; {_choices('--recipe')}")


def _choices(option: str) -> str:
    return f"{option} takes {', '.join(recipe_names())}, or the path of a .toml file"


def _find(name_or_path: str, folder: Path, asked_by: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return folder / Path(name_or_path).expanduser()
    if name_or_path not in (*recipe_names(), REFERENCE):
        raise ServerError(f"{asked_by} {name_or_path!r}: there is no such recipe; {_choices(asked_by)}")
    return _SHIPPED / f"{name_or_path}.toml"


def _load(path: Path, extending: tuple[Path, ...]) -> Recipe:
    """:param extending: The files that led here, each extending the next."""
    if any(path.resolve() == other.resolve() for other in extending):
        chain = " extends ".join(str(each) for each in (*extending, path))
        raise ServerError(f"a recipe cannot extend itself: {chain}")
    own, given = _read(path)
    fields = asdict(own)
    if own.extends is not None:
        base = _load(_find(own.extends, path.parent, f"{path}: extends"), (*extending, path))
        changed = base.overridden(own)
        inherited = {"source", "model", "family", "tp", "command"} - given
        fields |= {name: getattr(base, name) for name in inherited} | changed | {"when": (*changed["when"], *own.when)}
    return Recipe(**fields, name=path.stem if path.parent == _SHIPPED else path.name)


def _read(path: Path) -> tuple[RecipeFile, set[str]]:
    """One file, and the names of the fields that it sets."""
    try:
        table = msgspec.toml.decode(path.read_bytes())
        return msgspec.convert(table, RecipeFile), set(table)
    except OSError as error:
        raise ServerError(f"{path}: the recipe cannot be read ({error.strerror}); {_choices('--recipe')}") from error
    except msgspec.ValidationError as error:
        raise ServerError(f"{path}: {_explained(str(error), table)}") from None
    except (ValueError, RecursionError) as error:
        raise ServerError(f"{path}: not TOML: {error}") from error


def _explained(message: str, table: Any) -> str:
    """msgspec's message, led by the key, and with the value that was found."""
    expected, _, place = message.partition(" - at `$.")
    key, found = place.removesuffix("`"), table
    for step in re.findall(r"\w+", key):
        found = found[int(step)] if isinstance(found, list) else found[step]
    where = f"{key}: " if key else ""
    if "unknown field" in expected:
        return f"{where}{expected}; known are {', '.join((When if key else RecipeFile).__struct_fields__)}"
    return f"{where}{expected}" + (f", found {repr(found)[:60]}" if expected.startswith("Expected") else "")
