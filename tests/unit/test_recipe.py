"""A recipe is data; with what was typed it makes one command line for a point."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.config import ALL_SCENARIOS, CONCURRENCIES, Point, Scenario
from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers.choose import LaunchPlan
from pytest_dsr1.servers.launch import Launch, parse_server_arg, shell_line
from pytest_dsr1.servers.recipe import REFERENCE, Recipe, load_recipe, recipe_for, recipe_names

POINTS = tuple(Point(scenario, conc) for scenario in ALL_SCENARIOS for conc in CONCURRENCIES)

MI355X = (
    "/opt/python3", "-m", "sglang.launch_server", "--model-path=amd/DeepSeek-R1-0528-MXFP4-Preview",
    "--host=127.0.0.1", "--port=8888", "--tensor-parallel-size=8", "--trust-remote-code",
    "--chunked-prefill-size={P}", "--mem-fraction-static=0.8", "--num-continuous-decode-steps=4",
    "--max-prefill-tokens={P}", "--cuda-graph-max-bs=128", "--disable-radix-cache",
)  # fmt: skip


def point(isl: int, osl: int, conc: int) -> Point:
    """Short for a configuration."""
    return Point(Scenario(isl, osl), conc)


def plan(recipe: str | Recipe, *, port: int = 8888, **typed: Any) -> LaunchPlan:
    """How a recipe is launched with what was typed."""
    made = load_recipe(recipe) if isinstance(recipe, str) else recipe
    return LaunchPlan(recipe=made.with_typed(**typed), port=port, python="/opt/python3")


def launch_of(recipe: str | Recipe, at: Point = POINTS[0], **typed: Any) -> Launch:
    """What is launched for one point."""
    return plan(recipe, **typed).launch_for(at)


def launches(
    recipe: str | Recipe, points: Sequence[Point], **typed: Any
) -> tuple[tuple[Launch, tuple[Point, ...]], ...]:
    """What is launched for these points, one after another."""
    return plan(recipe, **typed).launches(points)


def written(folder: Path, text: str, name: str = "own.toml") -> str:
    """The path of a recipe with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(folder: Path, text: str) -> str:
    """Why a recipe with this text is refused."""
    with pytest.raises(ServerError) as refused:
        load_recipe(written(folder, text))
    return str(refused.value)


def arguments_of(launch: Launch) -> tuple[str, ...]:
    """The words of a command line that come from the recipe or were typed."""
    return launch.argv[launch.argv.index("--tensor-parallel-size=8") + 1 :]


class TestShipped:
    """The recipes that travel with the package."""

    @pytest.mark.parametrize(
        ("at", "prefill"),
        [
            pytest.param(point(1024, 1024, 64), 196608, id="1024/1024-conc64"),
            pytest.param(point(8192, 1024, 32), 196608, id="8192/1024-conc32"),
            pytest.param(point(8192, 1024, 64), 32768, id="8192/1024-conc64"),
        ],
    )
    def test_mi355x_is_the_launch_of_the_competition(self, at: Point, prefill: int) -> None:
        """Word by word, but for the loopback host; long prompts above CONC 32 get a smaller prefill."""
        launch = launch_of("mi355x", at)
        assert launch.argv == tuple(word.format(P=prefill) for word in MI355X)
        assert launch.environment == {"SGLANG_USE_AITER": "1"}
        assert (launch.model, launch.url) == ("amd/DeepSeek-R1-0528-MXFP4-Preview", "http://127.0.0.1:8888")

    def test_the_competition_takes_two_launches(self) -> None:
        """In sweep order; the prefill of the very last point starts a second server."""
        served = launches("mi355x", POINTS)
        assert [points for _, points in served] == [POINTS[:-1], POINTS[-1:]]
        (before, _), (after, _) = served
        assert after.changes_from(before) == "chunked-prefill-size 196608 -> 32768, max-prefill-tokens 196608 -> 32768"

    def test_a_typed_argument_saves_the_restart(self) -> None:
        """It goes before rules too, in the place of the recipe's."""
        typed = dict(map(parse_server_arg, ("chunked-prefill-size=32768", "--max-prefill-tokens=32768")))
        served = launches("mi355x", POINTS, arguments=typed)
        assert [(launch.argv, points) for launch, points in served] == [
            (tuple(word.format(P=32768) for word in MI355X), POINTS)
        ]

    def test_mtp_is_mi355x_and_more(self) -> None:
        """Its arguments follow those that it extends, rules included; the launch has no doubles."""
        at = point(8192, 1024, 64)
        plain, mtp = launch_of("mi355x", at), launch_of("mi355x-mtp", at)
        assert mtp.argv == (
            *plain.argv, "--speculative-algorithm=EAGLE", "--speculative-num-steps=2",
            "--speculative-eagle-topk=1", "--speculative-num-draft-tokens=3",
        )  # fmt: skip
        assert mtp.environment == {
            "SGLANG_USE_AITER": "1", "SGLANG_AITER_MLA_PERSIST": "1", "SGLANG_ENABLE_SPEC_V2": "1",
        }  # fmt: skip

    def test_b200_polls_more_often_below_concurrency_16(self) -> None:
        """InferenceX's rule: one restart in a sweep over five concurrencies."""
        served = launches("b200", POINTS[:5])
        assert [[each.conc for each in points] for _, points in served] == [[4, 8], [16, 32, 64]]
        assert served[1][0].changes_from(served[0][0]) == "scheduler-recv-interval 10 -> 30"

    def test_cpu_needs_a_model(self) -> None:
        """Nobody knows what fits into this machine; with a model it is one rank on the CPU."""
        with pytest.raises(ServerError, match=r"recipe cpu .*--model"):
            launch_of("cpu")
        launch = launch_of("cpu", model="/models/tiny")
        assert {"--model-path=/models/tiny", "--device=cpu", "--tensor-parallel-size=1"} <= set(launch.argv)
        assert launch.environment == {"SGLANG_USE_CPU_ENGINE": "1"}

    @pytest.mark.parametrize("name", [*recipe_names(), REFERENCE])
    def test_each_says_where_it_is_from(self, name: str) -> None:
        """A summary for --print-launch, a source for whoever doubts a flag."""
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.summary
        assert recipe.source

    @pytest.mark.parametrize("name", recipe_names())
    def test_every_argument_is_written_with_its_name(self, name: str) -> None:
        """At every point of the competition, each once."""
        for at in POINTS:
            words = launch_of(name, at, model="some/model").argv[3:]
            assert [word for word in words if not word.startswith("--")] == []
            names = [word.partition("=")[0] for word in words]
            assert len(set(names)) == len(names)


class TestChoice:
    """Which recipe is taken when nobody names one."""

    @pytest.mark.parametrize(
        ("gpu", "expected"),
        [
            ("AMD Instinct MI355X", "mi355x"),
            ("AMD Instinct MI355 OAM", "mi355x"),
            ("AMD gfx950 (MI350X/MI355X)", "mi355x"),
            ("NVIDIA B200", "b200"),
            ("NVIDIA H100 80GB HBM3", "hopper"),
            ("NVIDIA H200", "hopper"),
            ("NVIDIA H20-3e", "hopper"),
            ("NVIDIA GH200 480GB", "hopper"),
        ],
    )
    def test_by_gpu(self, gpu: str, expected: str) -> None:
        """Exactly one recipe is for a GPU, with a model of its own."""
        fitting = [name for name in recipe_names() if load_recipe(name).fits_gpus([gpu])]
        assert fitting == [expected]
        assert recipe_for([gpu] * 8, None).name == expected
        assert load_recipe(expected).model is not None

    def test_without_a_gpu_it_is_the_cpu(self) -> None:
        """Whatever the model."""
        assert recipe_for([], "amd/DeepSeek-R1-0528-MXFP4-Preview").name == "cpu"

    def test_a_model_of_the_family_fits(self) -> None:
        """Small and capital letters are one."""
        assert recipe_for(["NVIDIA B200"], "/data/deepseek-r1-0528-fp4-v2").name == "b200"

    def test_a_model_of_another_family_does_not(self) -> None:
        """The B200 recipe quantizes as one checkpoint needs it."""
        with pytest.raises(ServerError, match=r"8 x NVIDIA B200 .*b200 .*DeepSeek-R1-0528-FP4.* --recipe"):
            recipe_for(["NVIDIA B200"] * 8, "deepseek-ai/DeepSeek-R1-0528")

    def test_the_embedded_engine_is_none_of_them(self) -> None:
        """Whatever GPU there is, it is chosen by `--engine` only."""
        assert REFERENCE not in recipe_names()
        assert not load_recipe(REFERENCE).fits_gpus(["NVIDIA B200"])

    @pytest.mark.parametrize("gpus", [["NVIDIA A100"], ["NVIDIA GB200"], ["NVIDIA B200", "NVIDIA A100"]], ids=str)
    def test_an_unknown_gpu_is_not_guessed_at(self, gpus: list[str]) -> None:
        """One unknown among several is enough."""
        with pytest.raises(ServerError, match=r"1 x NVIDIA \w+; --recipe takes b200, cpu"):
            recipe_for(gpus, None)

    @pytest.mark.parametrize("name", ["mi355", "MI355X", "..", ""])
    def test_an_unknown_name_lists_the_known_ones(self, name: str) -> None:
        """Names are exact."""
        with pytest.raises(ServerError, match=r"--recipe takes b200, cpu, hopper, mi355x, mi355x-mtp,"):
            load_recipe(name)


class TestOwn:
    """A recipe in a file of the user's."""

    def test_an_empty_one_is_sglang_as_it_comes(self, tmp_path: Path) -> None:
        """Eight ranks, and a model that must be said."""
        launch = launch_of(load_recipe(written(tmp_path, "")), model="some/model")
        assert launch.recipe == "own.toml"
        assert launch.argv[1:] == (
            "-m", "sglang.launch_server", "--model-path=some/model", "--host=127.0.0.1", "--port=8888",
            "--tensor-parallel-size=8",
        )  # fmt: skip

    def test_values_are_written_as_sglang_reads_them(self, tmp_path: Path) -> None:
        """A flag, what is left out, numbers, a text, and a list whose words stand by themselves."""
        text = """[arguments]
            flag = true
            absent = false
            whole = 1_000
            real = 0.25
            text = 'two words'
            list = [1, 2, "three"]
            json = '{"a": 1}'"""
        assert arguments_of(launch_of(load_recipe(written(tmp_path, text)), model="m")) == (
            "--flag", "--whole=1000", "--real=0.25", "--text=two words", "--list", "1", "2", "three", '--json={"a": 1}',
        )  # fmt: skip

    def test_a_command_of_its_own_starts_the_server(self, tmp_path: Path) -> None:
        """{python} stands for the interpreter, wherever it is."""
        recipe = load_recipe(written(tmp_path, 'command = ["numactl", "--membind=0", "{python}", "/srv/serve.py"]'))
        assert launch_of(recipe, model="m").argv[:5] == (
            "numactl", "--membind=0", "/opt/python3", "/srv/serve.py", "--model-path=m",
        )  # fmt: skip

    def test_all_conditions_of_a_rule_must_hold(self, tmp_path: Path) -> None:
        """Lengths exactly, concurrencies strictly above and below."""
        rule = "[[when]]\nisl = 8\nosl = 4\nconc_above = 4\nconc_below = 16\narguments = { x = 1 }"
        recipe = load_recipe(written(tmp_path, rule))
        points = [point(8, 4, conc) for conc in (4, 5, 15, 16)] + [point(9, 4, 8), point(8, 5, 8)]
        changed = [at for at in points if "--x=1" in launch_of(recipe, at, model="m").argv]
        assert changed == [point(8, 4, 5), point(8, 4, 15)]

    def test_a_later_rule_wins(self, tmp_path: Path) -> None:
        """Rules go before [arguments] and [environment]; each may leave out what stood before."""
        text = """environment = { A = 1, B = 1 }
            arguments = { x = 1, y = 1 }
            when = [
              { isl = 1024, arguments = { x = 2, y = false }, environment = { A = 2, B = false } },
              { conc_below = 8, arguments = { x = 3 } },
            ]"""
        launch = launch_of(load_recipe(written(tmp_path, text)), point(1024, 1024, 4), model="m")
        assert arguments_of(launch) == ("--x=3",)
        assert launch.environment == {"A": "2"}

    def test_a_shipped_one_is_extended_by_name(self, tmp_path: Path) -> None:
        """Everything is inherited but the GPUs, which would make the choice ambiguous; false leaves out."""
        text = """extends = "mi355x"
            tp = 4
            [arguments]
            cuda-graph-max-bs = false
            cuda-graph-max-bs-decode = 128"""
        recipe, base = load_recipe(written(tmp_path, text)), load_recipe("mi355x")
        assert (recipe.model, recipe.family, recipe.source) == (base.model, base.family, base.source)
        assert (recipe.gpus, recipe.tp, recipe.summary) == ((), 4, "")
        changed = launch_of(recipe).changes_from(launch_of("mi355x", tp=4))
        assert (
            changed
            == "recipe mi355x -> own.toml, cuda-graph-max-bs 128 -> unset, cuda-graph-max-bs-decode unset -> 128"
        )

    def test_whoever_extends_has_the_last_word(self, tmp_path: Path) -> None:
        """What the new recipe says goes before rules that it inherits."""
        text = 'extends = "mi355x"\narguments = { chunked-prefill-size = 1, max-prefill-tokens = 1 }'
        recipe = load_recipe(written(tmp_path, text))
        assert len(launches(recipe, POINTS)) == 1

    def test_a_path_is_relative_to_the_file_that_extends(self, tmp_path: Path) -> None:
        """Not to the working directory."""
        (tmp_path / "base").mkdir()
        written(tmp_path / "base", "tp = 2", "two.toml")
        written(tmp_path / "base", 'extends = "two.toml"', "same.toml")
        assert load_recipe(written(tmp_path, 'extends = "base/same.toml"')).tp == 2

    def test_the_documented_ones_work(self, tmp_path: Path) -> None:
        """What docs/recipes.md shows can be copied."""
        page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
        examples = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        newer, full = (load_recipe(written(tmp_path, example)) for example in examples)
        assert {"--cuda-graph-max-bs-decode=128", "--chunked-prefill-size=196608"} <= set(launch_of(newer).argv)
        assert "--chunked-prefill-size=32768" in launch_of(full, point(8192, 1024, 64)).argv

    def test_typed_arguments_extend_it(self) -> None:
        """In the recipe's place where it has the argument, else behind; of one name, the last counts."""
        typed = dict(map(parse_server_arg, ("trust-remote-code=x", "new=1", "new=2", "host=0.0.0.0")))
        launch = launch_of("hopper", arguments=typed, environment={"B": "3", "A": "2"}, model="m", port=1, tp=2)
        assert launch.argv[3:] == (
            "--model-path=m", "--host=0.0.0.0", "--port=1", "--tensor-parallel-size=2", "--trust-remote-code=x",
            "--chunked-prefill-size=8192", "--disable-radix-cache", "--enable-cache-report", "--new=2",
        )  # fmt: skip
        assert list(launch.environment.items()) == [("A", "2"), ("B", "3")]

    def test_the_name_of_what_it_serves(self) -> None:
        """SGLang lists a model as its path, unless told a name."""
        named = {"served-model-name": "tiny"}
        assert launch_of("hopper", model="/models/tiny").model == "/models/tiny"
        assert launch_of("hopper", model="/models/tiny", arguments=named).model == "tiny"

    def test_a_circle_is_named(self, tmp_path: Path) -> None:
        """However long it is."""
        written(tmp_path, 'extends = "own.toml"', "other.toml")
        path = written(tmp_path, 'extends = "./other.toml"')
        with pytest.raises(ServerError, match=r"own.toml extends .*other.toml extends .*own.toml"):
            load_recipe(path)


class TestRefused:
    """What no recipe can mean is an error that names the file, the key, what was found and what was expected."""

    @pytest.mark.parametrize(
        ("text", "key", "found", "expected"),
        [
            ("tp = 0", "tp", "0", ">= 1"),
            ("tp = true", "tp", "True", "`int`"),
            ('gpus = "B200"', "gpus", "'B200'", "`array`"),
            ("gpus = ['']", "gpus[0]", "''", "length >= 1"),
            ("model = 1", "model", "1", "`str | null`"),
            ("command = []", "command", "[]", "length >= 1"),
            ("arguments = 1", "arguments", "1", "`object`"),
            ("arguments = { x = 2025-11-25 }", "arguments.x", "date", "texts or numbers"),
            ("arguments = { x = [] }", "arguments.x", "[]", "length >= 1"),
            ("arguments = { x = [true] }", "arguments.x", "[True]", "texts or numbers"),
            ("arguments = { x = inf }", "arguments.x", "inf", "finite number"),
            ("arguments = { host = true }", "arguments.host", "", "host=…"),
            ("environment = { X = true }", "environment.X", "True", "false to leave it out"),
            ("environment = { X = [] }", "environment.X", "[]", "a text or a number"),
            ("when = 1", "when", "1", "`array`"),
            ("[[when]]\nisl = 1\n[[when]]\nosl = 0", "when[1].osl", "0", ">= 1"),
            ("[[when]]\nisl = 1\narguments = { x = [] }", "when[0]: arguments.x", "[]", "length >= 1"),
        ],
    )
    def test_a_wrong_value(self, text: str, key: str, found: str, expected: str, tmp_path: Path) -> None:
        """Of a field, of an argument, of a variable, of a condition."""
        error = refusal(tmp_path, text)
        assert error.startswith(f"{tmp_path}/own.toml: {key}: ")
        assert found in error
        assert expected in error

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("tp = ", ["not TOML"]),
            ("colour = 1", ["colour", "summary", "extends"]),
            ("[[when]]\nconc = 1", ["when[0]", "conc", "conc_above"]),
            ("[[when]]\narguments = { x = 1 }", ["when[0]", "isl, osl, conc_above, conc_below"]),
            ('command = ["{pyton}"]', ["command", "{pyton}", "{python}"]),
            ('command = ["serve", "--port=1"]', ["command", "--port"]),
            ("arguments = { mem_fraction = 1 }", ["arguments.mem_fraction", "NAME=VALUE"]),
            ("arguments = { tp = 4 }", ["arguments.tp", "--tp"]),
            ("arguments = { tp-size = false }", ["arguments.tp-size", "--tp"]),
            ("environment = { 1X = 1 }", ["environment.1X", "NAME=VALUE"]),
            ("environment = { HF_TOKEN = 'hush' }", ["environment.HF_TOKEN", "secret"]),
            ("extends = 'mi355'", ["extends", "'mi355'", "mi355x"]),
            ("extends = './absent.toml'", ["absent.toml", "No such file or directory"]),
        ],
    )
    def test_a_wrong_name(self, text: str, names: list[str], tmp_path: Path) -> None:
        """Which it is, and which are known; a secret is not repeated."""
        error = refusal(tmp_path, text)
        assert str(tmp_path) in error
        assert [name for name in names if name not in error] == []
        assert "hush" not in error

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        """TOML is UTF-8."""
        path = tmp_path / "own.toml"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ServerError, match=r"own\.toml: not TOML"):
            load_recipe(str(path))

    _SCALARS = st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=5)
    _VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
    _NAMES = st.sampled_from(
        ["summary", "extends", "model", "gpus", "tp", "command", "environment", "arguments", "when", "isl", "x"]
    )

    @given(st.dictionaries(_NAMES, _VALUES | st.dictionaries(_NAMES, _VALUES), max_size=4))
    def test_anything_else_is_a_recipe(
        self, tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
    ) -> None:
        """No document makes another error, and what is accepted can be launched."""
        text = "".join(f"{name} = {as_toml(value)}\n" for name, value in document.items() if value is not None)
        path = written(tmp_path_factory.getbasetemp(), text, "any.toml")
        try:
            launch = launch_of(load_recipe(path), model="m")
            outcome = shell_line(launch.argv, launch.environment)
        except ServerError as error:
            outcome = str(error)
        assert "--port=8888" in outcome or path in outcome


def as_toml(value: object) -> str:
    """A value as TOML writes it, which is almost as JSON does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, float):
        return str(value)
    return json.dumps("" if value is None else value)
