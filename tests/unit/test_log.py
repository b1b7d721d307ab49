"""What is read from a server's log: causes, telling lines, progress.

Whole logs are excerpts of SGLang 0.5.23's on a CPU; what needs a GPU is put together from the words of the sources.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dsr1.servers.log import cause_of_end, known_words, new_log, progress_of, tail_of, telling_lines


def logged(text: str) -> list[str]:
    """The lines of a log; a bar's carriage returns do not end one."""
    return text.split("\n")


#: A start on a CPU that went well, its lines about models that nobody wants included.
GOOD_START = logged("""\
/venv/sglang/launch_server.py:71: UserWarning: 'python -m sglang.launch_server' is still supported.
  warnings.warn(
[2026-11-24 14:26:55] Fail to set RLIMIT_NOFILE: current limit exceeds maximum limit
[2026-11-24 14:26:55] server_args={'model_path': '/models/tiny-llama', 'api_key': 'sk-1', 'watchdog_timeout': 300}
[2026-11-24 14:27:02] Init parallel begin.
[2026-11-24 14:27:02] Init parallel ends. elapsed=0.02 s
[2026-11-24 14:27:03] Ignore import error when loading sglang.srt.models.inkling: No module named 'cutlass'
[2026-11-24 14:27:03] Ignore import error when loading sglang.srt.models.grok: '_OpNamespace' 'sgl_kernel' object has \
no attribute 'fused_moe_router_cpu'
[2026-11-24 14:27:03] Load weight begin. avail mem=21.68 GB
Multi-thread loading shards:   0% Completed | 0/1 [00:00<?, ?it/s]\r\
Multi-thread loading shards: 100% Completed | 1/1 [00:00<00:00, 148.53it/s]
[2026-11-24 14:27:03] Load weight end. elapsed=0.02 s, type=LlamaForCausalLM, avail mem=21.67 GB, mem usage=0.01 GB.
[2026-11-24 14:27:04] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 65536, K size: 0.02 GB, V size: 0.02 GB
[2026-11-24 14:27:04] INFO:     Started server process [22452]
[2026-11-24 14:27:04] INFO:     Application startup complete.
[2026-11-24 14:27:04] INFO:     Uvicorn running on http://127.0.0.1:31205 (Press CTRL+C to quit)
[2026-11-24 14:27:05] INFO:     127.0.0.1:56776 - "GET /health HTTP/1.1" 503 Service Unavailable
[2026-11-24 14:27:05] The server is fired up and ready to roll!
[2026-11-24 14:27:07] INFO:     127.0.0.1:56820 - "GET /health HTTP/1.1" 200 OK""")

#: Another server had its port: it says that it is ready, since that one answered.
PORT_TAKEN = logged("""\
[2026-11-24 14:32:00] INFO:     Started server process [23938]
[2026-11-24 14:32:00] INFO:     Waiting for application startup.
[2026-11-24 14:32:00] INFO:     Application startup complete.
[2026-11-24 14:32:00] ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 31204): address \
already in use
[2026-11-24 14:32:00] INFO:     Waiting for application shutdown.
[2026-11-24 14:32:01] The server is fired up and ready to roll!
[2026-11-24 14:32:01] INFO:     Application shutdown complete.
[2026-11-24 14:32:01] kill_process_tree called: parent_pid=23938, include_parent=False, pid=23938""")

#: Its scheduler got a SIGKILL while it served.
KILLED = [
    *GOOD_START,
    *logged("""\
[2026-11-24 14:27:07] Subprocess scheduler_0 (pid=22472) crashed with exit code -9. Triggering SIGQUIT for cleanup...
[2026-11-24 14:27:07] SIGQUIT received. signum=None, frame=None. It usually means one child failed.
[2026-11-24 14:27:07] Sleeping 5 seconds before crash diagnostics to let GPU activity settle.
[2026-11-24 14:27:12] kill_process_tree called: parent_pid=22452, include_parent=True, pid=22452"""),
]

#: --model is a folder that is not there.
MISSING_MODEL = logged("""\
huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': \
'/models/nothing-here'. Use `repo_type` argument if needed.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/venv/sglang/launch_server.py", line 84, in <module>
    run_server(server_args)
  File "/venv/sglang/srt/utils/common.py", line 4570, in wrapper
    result = func(*args, **kwargs)
             ^^^^^^^^^^^^^^^^^^^^^
  File "/venv/sglang/srt/utils/hf_transformers/config.py", line 387, in get_config
    meta = load_pointer_adapter(model, revision)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/venv/transformers/utils/hub.py", line 370, in cached_file
    file = cached_files(path_or_repo_id=path_or_repo_id, filenames=[filename], **kwargs)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/venv/transformers/utils/hub.py", line 595, in cached_files
    raise OSError(f"{e}") from e
OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/nothing-here'. Use `repo_type` \
argument if needed.""")

#: --server-arg no-such-flag=3: some 400 lines of usage, and one that matters.
UNKNOWN_FLAG = logged("""\
usage: sglang serve [-h] --model-path MODEL_PATH [--tokenizer-path TOKENIZER_PATH]
                    [--trust-remote-code] [--watchdog-timeout WATCHDOG_TIMEOUT]
                    [--config CONFIG] [--disable-cuda-graph]
sglang serve: error: unrecognized arguments: --no-such-flag 3""")

#: Put together: rank 1 ran out of memory, rank 0 waited for it.
OUT_OF_MEMORY = logged("""\
[2026-11-24 14:27:02 TP0] Load weight begin. avail mem=21.68 GB
[2026-11-24 14:27:20 TP1] Scheduler hit an exception: Traceback (most recent call last):
  File "/venv/sglang/srt/managers/scheduler.py", line 6340, in run_scheduler_process
    scheduler = Scheduler(server_args, port_args)
  File "/venv/sglang/srt/layers/quantization/fp8.py", line 300, in create_weights
    torch.empty(output_size, input_size)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 1 has a total capacity of 79.11 GiB \
of which 12.00 MiB is free.

[2026-11-24 14:27:20] Received sigquit from a child process. It usually means the child failed.
[2026-11-24 14:27:21 TP0] Scheduler hit an exception: Traceback (most recent call last):
  File "/venv/torch/distributed/distributed_c10d.py", line 4000, in barrier
    work.wait()
torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1234, unhandled system error""")

#: A line of a log, what of it stands in the cause, and the option or command that the advice names.
CAUSES = [
    (PORT_TAKEN[3], "port 31204 of 127.0.0.1", "--port"),
    (
        "ERROR:    [Errno 98] error while attempting to bind on address ('::1', 8888, 0, 0): [errno 98] address "
        "already in use",
        "port 8888 of ::1",
        "--port",
    ),
    ("ValueError: nccl_port at 31336 is not available in 30 seconds. nccl_port at 31336 is", "between", "--port"),
    ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:8912')", "between", "--port"),
    (UNKNOWN_FLAG[-1], "--no-such-flag 3", "--server-arg"),
    (
        "sglang serve: error: argument --attention-backend: invalid choice: 'no_such_backend' (choose from 'triton', "
        "'torch_native', 'aiter')",
        "'no_such_backend'",
        "--server-arg",
    ),
    ("launch_server.py: error: argument --port: invalid int value: 'many'", "--port: invalid int", "--recipe"),
    ("/usr/bin/python3: No module named sglang", "SGLang", "--sglang-python"),
    ("ModuleNotFoundError: No module named 'sglang'", "SGLang", "--sglang-python"),
    (MISSING_MODEL[-1], "/models/nothing-here", "--model"),
    (
        "OSError: someone/nothing is not a local folder and is not a valid model identifier listed on the hub",
        "someone/nothing",
        "HF_TOKEN",
    ),
    ("OSError: You are trying to access a gated repo.", "gated", "HF_TOKEN"),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load the files", "hub", "--model"),
    ("RuntimeError: No HIP GPUs are available", "GPU", "HIP_VISIBLE_DEVICES"),
    (
        "RuntimeError: No accelerator (CUDA, XPU, HPU, NPU, MUSA, MPS) or platform plugin is available.",
        "GPU",
        "amd-smi",
    ),
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: "
        "mem_fraction_static=0.8",
        "GPU memory",
        "mem-fraction-static=0.9",
    ),
    (OUT_OF_MEMORY[6], "GPU memory", "mem-fraction-static=0.8"),
    ("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB.", "GPU memory", "--tp"),
    ("OSError: [Errno 28] No space left on device: '/dev/shm/psm_1a2b'", "/dev/shm", "--shm-size"),
    ("OSError: [Errno 28] No space left on device", "disk", "HF_HOME"),
    ("RuntimeError: Rank 3 scheduler died during initialization (exit code: -9). If exit", "Rank 3", "dmesg"),
    (
        "[2026-11-24 14:27:07] Subprocess scheduler_0 (pid=22472) crashed with exit code -9. Triggering SIGQUIT for "
        "cleanup...",
        "(SIGKILL)",
        "dmesg",
    ),
    (
        "[2026-11-24 15:00:00] Subprocess scheduler_1 (pid=77) crashed with exit code -6. Triggering SIGQUIT",
        "status -6: Subprocess scheduler_1 (pid=77)",
        "SIGABRT",
    ),
    ("RuntimeError: Rank 0 scheduler died during initialization (exit code: -11).", "status -11", "SIGSEGV"),
]


@pytest.mark.parametrize(("line", "what", "advice"), CAUSES, ids=str)
def test_a_line_shows_the_cause(line: str, what: str, advice: str) -> None:
    """The cause has the figures of the log, and the advice an option or a command."""
    cause = cause_of_end([*GOOD_START, line])
    assert cause is not None
    assert what in cause.what
    assert advice in cause.advice


def test_every_known_cause_has_an_example() -> None:
    """Words that no line here has may never have matched one."""
    lines = [re.sub(r"^\[2026[^]]*\] ", "", line) for line, _, _ in CAUSES]
    known = (*known_words().root, *known_words().killed, *known_words().ended)
    assert [each.words for each in known if not any(re.search(each.words, line) for line in lines)] == []


@pytest.mark.parametrize(
    "line",
    [
        "[2026-11-24 12:00:00] Ignore import error when loading sglang.srt.models.x: No module named 'sglang'",
        "[2026-11-24 12:00:00] Port 31000 is already in use, trying port 31001",
        "[2026-11-24 12:00:00] Available memory 3GB is less than required memory 9GB for warmup, reducing max_m "
        "to 64 to avoid out of memory",
        "[2026-11-24 12:00:00] KV cache pool is full. Retract requests. #retracted_reqs: 1",
        "[2026-11-24 12:00:00] server_args={'watchdog_timeout': 300, 'note': 'CUDA out of memory'}",
    ],
)
def test_a_warning_is_no_cause(line: str) -> None:
    """SGLang goes on after each of these."""
    assert cause_of_end([*GOOD_START, line]) is None


def test_a_good_start_has_no_cause() -> None:
    """Its models that could not be imported were not asked for."""
    assert cause_of_end(GOOD_START) is None
    assert cause_of_end([]) is None


def test_what_began_it_is_the_cause_not_what_followed() -> None:
    """One rank runs out of memory; the others and the parent end after it."""
    cause = cause_of_end([*OUT_OF_MEMORY, *KILLED])
    assert cause is not None
    assert "GPU memory" in cause.what


def test_the_last_of_several_causes_counts() -> None:
    """A server may have lived through an earlier one."""
    cause = cause_of_end([*OUT_OF_MEMORY, *GOOD_START, "OSError: [Errno 28] No space left on device"])
    assert cause is not None
    assert "disk" in cause.what


def test_colours_and_time_stamps_hide_no_cause() -> None:
    """A log may be one for a terminal."""
    cause = cause_of_end(["[2026-11-24 14:27:20 DP1 TP3] \x1b[1;31mRuntimeError\x1b[0m: No HIP GPUs are available\r"])
    assert cause is not None
    assert "no GPU" in cause.what


def test_a_start_is_followed_from_its_log() -> None:
    """Each stage once, in order."""
    said = [progress for line in GOOD_START if (progress := progress_of([line])) is not None]
    assert said == [
        "starting its processes",
        "connecting its processes",
        "loading weights",
        "loading weights 1/1",
        "allocating the KV cache",
        "preparing to serve",
        "opening its port",
        "answering its first request",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Loading safetensors checkpoint shards:   7% Completed | 12/163 [00:31<06:12,  2.46s/it]", "weights 12/163"),
        ("Multi-thread loading shards:  50% Completed | 82/163 [00:12<00:12,  6.48it/s]", "loading weights 82/163"),
        ("Fetching 163 files:  12%|█▏        | 20/163 [00:31<03:40,  1.54s/it]", "downloading the model, file 20/163"),
        (
            "model-00001-of-00163.safetensors:  23%|██▎       | 1.20G/5.23G [00:31<01:40, 40MB/s]",
            "downloading the model",
        ),
        ("[2026-11-24 12:00:00 TP0] Capture target decode CUDA graph begin. backend=full", "capturing CUDA graphs"),
        ("[2026-11-24 12:00:00 TP0] Capture cuda graph begin. This can take up to several minutes.", "CUDA graphs"),
        (
            "Capturing batches (bs=8 avail_mem=35.20 GB):  40%|████      | 21/52 [00:10<00:15]",
            "capturing CUDA graphs 21/52",
        ),
        ("Capturing batches (bs=8 avail_mem=35.20 GB):   0%|          | 0/0 [00:00<?]", "capturing CUDA graphs 0/0"),
        ("[aiter] start build [module_mla_asm] under /aiter/jit/build/module_mla_asm", "compiling kernels"),
        ("[aiter] [pid=7 pname=MainProcess] waiting for baton release at /aiter/jit/build/lock_x", "compiling kernels"),
        ("[2026-11-24 12:00:00 TP0] Entering DeepGEMM JIT Pre-Compile session. It may take long", "compiling kernels"),
        ("[2026-11-24 12:00:00 TP0] Running FlashInfer autotune with cache: x", "choosing kernels"),
    ],
)
def test_a_stage_is_said_in_a_few_words(line: str, said: str) -> None:
    """What takes minutes says how far it is, where the log does."""
    progress = progress_of([line])
    assert progress is not None
    assert said in progress


@pytest.mark.parametrize(
    "line",
    [
        "[2026-11-24 14:32:01] The server is fired up and ready to roll!",
        "[2026-11-24 14:27:04] INFO:     Application startup complete.",
        '[2026-11-24 14:27:05] INFO:     127.0.0.1:56776 - "POST /generate HTTP/1.1" 200 OK',
        "",
    ],
)
def test_other_lines_say_nothing(line: str) -> None:
    """Above all not that it is ready: the server that answered may be another one."""
    assert progress_of([line]) is None


def test_a_traceback_is_shown_by_its_head_and_its_end() -> None:
    """The frames between are in the log."""
    assert telling_lines(MISSING_MODEL, 5) == [
        "Traceback (most recent call last):",
        "    file = cached_files(path_or_repo_id=path_or_repo_id, filenames=[filename], **kwargs)",
        '  File "/venv/transformers/utils/hub.py", line 595, in cached_files',
        '    raise OSError(f"{e}") from e',
        MISSING_MODEL[-1],
    ]


def test_the_traceback_of_the_cause_is_shown_not_the_last_one() -> None:
    """The rank that failed, and a little of what the others did then."""
    shown = telling_lines(OUT_OF_MEMORY)
    assert shown[0].endswith("TP1] Scheduler hit an exception: Traceback (most recent call last):")
    assert shown[5].startswith("torch.OutOfMemoryError: CUDA out of memory.")
    assert len(shown) == 8


def test_usage_and_claims_are_not_shown() -> None:
    """400 lines of options would hide the one line that matters."""
    assert telling_lines(UNKNOWN_FLAG) == [UNKNOWN_FLAG[-1]]
    assert not any("fired up" in line for line in telling_lines(PORT_TAKEN))
    assert PORT_TAKEN[3] in telling_lines(PORT_TAKEN)


def test_what_the_server_did_about_it_is_shown_too() -> None:
    """Two lines behind the telling one."""
    shown = telling_lines(KILLED)
    assert [line.partition("] ")[2][:16] for line in shown[-3:]] == [
        "Subprocess sched",
        "SIGQUIT received",
        "Sleeping 5 secon",
    ]


def test_an_exception_that_nobody_knows_is_shown() -> None:
    """No cause is known, and the lines say it all the same."""
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "ZeroDivisionError: one by 0"]
    assert cause_of_end(lines) is None
    assert telling_lines([*lines, *GOOD_START])[:3] == lines


def test_without_anything_telling_the_end_is_shown() -> None:
    """Better than nothing; the arguments, with their keys, are left out."""
    shown = telling_lines(GOOD_START)
    assert shown[-1] == GOOD_START[-4]
    assert not any("sk-1" in line for line in shown)
    assert telling_lines([]) == []


def test_lines_are_cut_and_cleaned() -> None:
    """A log may contain colours, progress bars, bells, halves of characters."""
    assert telling_lines(["\x1b[31mred\x1b[0m\x07 \x1b]0;title\x07end\udc80", "a" * 400, "old\rnew"]) == [
        "red end",
        "a" * 299 + "…",
        "new",
    ]


_lines = st.lists(
    st.sampled_from([line for line, _, _ in CAUSES] + GOOD_START + OUT_OF_MEMORY + MISSING_MODEL + UNKNOWN_FLAG)
    | st.text(),
    max_size=30,
)


@settings(deadline=None)  # a busy machine is no failure
@given(_lines, st.integers(0, 15))
def test_any_log_can_be_read(lines: list[str], limit: int) -> None:
    """What is made of it is short, printable, and one line each."""
    shown = telling_lines(lines, limit)
    assert len(shown) <= limit
    cause = cause_of_end(lines)
    for text in [*shown, *([cause.what, cause.advice] if cause is not None else [])]:
        assert 0 < len(text) <= 300
        assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


@settings(deadline=None)  # a busy machine is no failure
@given(_lines)
def test_no_line_says_ready(lines: list[str]) -> None:
    """Progress is what a log says, readiness is not."""
    for line in lines:
        progress = progress_of([line])
        assert progress is None or "ready" not in progress.split()


class TestFile:
    """A log as a file."""

    def test_a_bar_s_states_are_lines(self, tmp_path: Path) -> None:
        """So that the last of them is the progress."""
        path = tmp_path / "log"
        path.write_text("one\nbar 1\rbar 2\rtw")
        assert tail_of(path) == ["one", "bar 1", "bar 2", "tw"]

    def test_its_end_is_read_of_a_long_one(self, tmp_path: Path) -> None:
        """A server may write faster than we read; a missing file has no lines."""
        path = tmp_path / "log"
        path.write_text("x" * 200_000 + "\nlast\n")
        assert [len(line) for line in tail_of(path)] == [128 * 1024 - 6, 4]
        assert tail_of(tmp_path / "absent") == []

    def test_a_name_is_never_used_twice(self, tmp_path: Path) -> None:
        """A server may be started twice in a second."""
        names = []
        for _ in range(3):
            names.append(new_log(tmp_path, "8888"))
            names[-1].touch()
        assert len(set(names)) == 3
