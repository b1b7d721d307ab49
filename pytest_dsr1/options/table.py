"""The options, each declared once; everything else is derived from here."""

from __future__ import annotations

from typing import NamedTuple

from pytest_dsr1.options import kinds


# A named tuple: to create a dataclass takes 1 ms, in every pytest session.
class Option(NamedTuple):
    """One option: its name, what it accepts, and where its value goes.

    :param kind: What its text may be.
    :param sets: The value that a flag sets; a flag takes no text.
    :param place: The attribute of `SweepConfig` that it sets, dotted where it is nested; empty where code decides;
        None: the one of the option's name.
    :param environment: The environment variable that sets it where it was not typed.
    :param repeatable: Whether it may be typed several times; its value is a tuple.
    :param names_only: Whether an error quotes only the part before the first "=": the rest may be a secret.
    :param stored: Whether a batch folder keeps it for a resumed run, which measures the same.
    :param starts_sweep: Whether typing it asks for a sweep.
    """

    name: str
    help: str
    kind: kinds.Kind = kinds.FLAG
    sets: bool | None = None
    place: str | None = None
    environment: str = ""
    repeatable: bool = False
    names_only: bool = False
    stored: bool = True
    starts_sweep: bool = False

    @property
    def dest(self) -> str:
        """Its attribute in pytest's namespace, and its name in the ini file."""
        return "dsr1_" + self.name.lstrip("-").replace("-", "_")

    @property
    def attribute(self) -> str:
        """The attribute of `SweepConfig` that it sets; empty where code decides."""
        return self.name.lstrip("-").replace("-", "_") if self.place is None else self.place

    @property
    def is_flag(self) -> bool:
        """Whether it takes no text."""
        return self.sets is not None


OPTIONS = (
    Option("--isl", "Input sequence length in tokens", kinds.COUNT, starts_sweep=True, place=""),
    Option("--osl", "Output sequence length in tokens", kinds.COUNT, starts_sweep=True, place=""),
    Option(
        "--scenario",
        "Several pairs of lengths in one session: ISL/OSL[,ISL/OSL...], or all for the competition's three",
        kinds.SCENARIOS,
        starts_sweep=True,
        place="",
    ),
    Option(
        "--conc",
        "Concurrencies, separated by commas (default: 4,8,16,32,64)",
        kinds.CONCURRENCIES,
        place="concurrencies",
    ),
    Option(
        "--mode",
        "acc: accuracy only; perf: accuracy and performance (default); submit: also submit to the leaderboard",
        kinds.MODE,
    ),
    Option("--submit-team", "Submit each result under this team name; implies --mode submit", kinds.TEAM, place="team"),
    Option(
        "--leaderboard-url",
        "Submit to this leaderboard (default: the competition's Space of these lengths); {isl} and {osl} stand "
        "for the lengths",
        kinds.ADDRESS,
    ),
    Option("--accept-schema", "Accept unknown labels of the leaderboard, until they change", sets=True, stored=False),
    Option(
        "--submit-timeout",
        "Longest time for one submission, in seconds (default: 300)",
        kinds.SECONDS,
        place="submit_timeout_s",
        stored=False,
    ),
    Option(
        "--submit-pending",
        "Send the results of this batch folder that were not sent yet, and measure nothing",
        kinds.BATCH,
        stored=False,
        place="",
    ),
    Option(
        "--yes",
        "With --submit-pending: send again, without a question, what was refused or may have arrived",
        sets=True,
        stored=False,
        place="",
    ),
    Option(
        "--engine",
        "Who serves: auto (default) takes a server on --port that names our model, else launches SGLang where "
        "there is a GPU, else the embedded reference engine",
        kinds.ENGINE,
    ),
    Option(
        "--server-url",
        "A running OpenAI-compatible server, which is not reconfigured (repeatable)",
        kinds.SERVER_URL,
        place="server_urls",
        repeatable=True,
    ),
    Option(
        "--recipe",
        "How SGLang is launched: a shipped recipe (mi355x, mi355x-mtp, b200, hopper, cpu) or a file (default: by "
        "the GPU that is found)",
        kinds.RECIPE,
        place="launch.recipe",
    ),
    Option(
        "--server-arg",
        "An argument of SGLang, without its --; it replaces the recipe's: --server-arg mem-fraction-static=0.9 "
        "(repeatable)",
        kinds.SERVER_ARG,
        place="launch.server_args",
        repeatable=True,
        names_only=True,
    ),
    Option(
        "--server-env",
        "An environment variable of SGLang (repeatable)",
        kinds.SERVER_ENV,
        place="launch.server_env",
        repeatable=True,
        names_only=True,
    ),
    Option(
        "--sglang-python",
        "The Python that has SGLang (default: this one, else the first python3 on PATH that has it)",
        kinds.PATH,
        place="launch.sglang_python",
    ),
    Option(
        "--launch-timeout",
        "Longest wait for a launched server, in seconds (default: 3600; a first start takes 20 to 30 minutes)",
        kinds.SECONDS,
        place="launch.timeout_s",
        stored=False,
    ),
    Option(
        "--keep-server",
        "Leave a launched server running; the next session finds it on --port",
        sets=True,
        place="launch.keep",
        stored=False,
    ),
    Option(
        "--print-launch",
        "Show command line and environment of the server that would be launched, and run nothing",
        sets=True,
        stored=False,
        starts_sweep=True,
    ),
    Option(
        "--no-flush-cache",
        "Do not empty an external server's prefix cache; by default it is emptied before each measurement",
        sets=False,
        place="flush_cache",
    ),
    Option(
        "--model",
        "The served model (default: amd/DeepSeek-R1-0528-MXFP4-Preview; with --server-url the one that it names)",
        kinds.MODEL,
        environment="MODEL",
    ),
    Option(
        "--tokenizer", "Tokenizer of the accuracy task: a folder or a hub name (default: the server's)", kinds.TOKENIZER
    ),
    Option(
        "--vocab-size",
        "Token ids of prompts are below this (default: from the server or its tokenizer)",
        kinds.VOCAB_SIZE,
    ),
    Option("--port", "Port of the SGLang server on this machine (default: 8888)", kinds.PORT, environment="PORT"),
    Option("--tp", "Tensor parallelism of the SGLang server (default: 8)", kinds.COUNT, environment="TP"),
    Option(
        "--accuracy",
        "gate (default): accuracy first, and no performance outside the gate; off: performance only",
        kinds.GATE,
    ),
    Option("--accuracy-data", "The accuracy corpus from a file of JSON rows instead of the hub", kinds.PATH),
    Option(
        "--accuracy-limit",
        "Only the first N documents of the accuracy task: a task of its own, with its own baseline",
        kinds.COUNT,
    ),
    Option(
        "--accuracy-baseline", "Accuracy baselines from this file, for a model that has no published one", kinds.PATH
    ),
    Option(
        "--record-accuracy-baseline",
        "Write the measured accuracy to this file, for --accuracy-baseline",
        kinds.PATH,
        stored=False,
    ),
    Option(
        "--num-prompts",
        "Requests measured at each concurrency (default: CONC*20 if OSL is 8192, else CONC*50)",
        kinds.COUNT,
    ),
    Option("--random-range-ratio", "Lengths are drawn uniformly from floor(R*L)..L (default: 1.0)", kinds.RANGE_RATIO),
    Option("--prompt-seed", "Seed of the prompts (default: drawn for each session, and recorded)", kinds.SEED),
    Option(
        "--idle-timeout",
        "Longest time without a byte of a response, in seconds (default: 300)",
        kinds.SECONDS,
        place="limits.idle_timeout_s",
    ),
    Option(
        "--request-timeout",
        "Longest time for one request, in seconds (default: 1800; 3600 from OSL 8192)",
        kinds.SECONDS,
        place="limits.request_timeout_s",
    ),
    Option(
        "--reports-dir",
        "Folder of the batch folders, relative to the rootdir (default: reports)",
        kinds.FOLDER,
        stored=False,
    ),
    Option(
        "--resume",
        "Complete this interrupted batch folder; its options come from the folder (repeatable)",
        kinds.BATCH,
        repeatable=True,
        stored=False,
        starts_sweep=True,
    ),
    Option(
        "--preflight",
        "Check what needs no server, show what would run, and run nothing",
        sets=True,
        stored=False,
        starts_sweep=True,
    ),
)
BY_NAME = {option.name: option for option in OPTIONS}
