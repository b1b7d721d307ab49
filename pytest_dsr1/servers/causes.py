"""What SGLang dies of: the words that it leaves in its log, what they mean, what to do about it.

Read in the sources of SGLang 0.5.23, transformers 5.19 and PyTorch 2.13; of CUDA, HIP, NCCL and aiter, as users report
them. Seen to be written by a server: those of a taken port, refused arguments, an absent model and ended processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a server ended.

    :param what: What happened, in one line.
    :param advice: What to do, in one line, with the options of ours that do it.
    """

    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Words of a log, and the cause that they give away.

    :param words: Searched for in one line, which has lost its time stamp.
    :param what: Of the cause; the named groups of `words` stand in braces. So in `advice`.
    """

    words: re.Pattern[str]
    what: str
    advice: str

    def cause(self, line: str) -> Cause | None:
        """What `line` gives away; None if it does not."""
        if not (match := self.words.search(line)):
            return None
        found = {name: _shown(value) for name, value in match.groupdict("").items()}
        return Cause(self.what.format_map(found), self.advice.format_map(found))


#: A value from a log is cut at so many characters.
_SHOWN = 160


def _shown(text: str) -> str:
    text = text.strip().rstrip(".,;")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _rule(words: str, what: str, advice: str) -> Rule:
    return Rule(re.compile(words), what, advice)


#: How the last line of a traceback begins.
_RAISED = r"^(?:[A-Za-z_][\w.]*)?(?:Error|Exception): "

_PORTS = "a server that was killed may still hold it: wait, or end it; or choose another --port, which moves these too"
_DEVICES = "--server-env CUDA_VISIBLE_DEVICES=… or HIP_VISIBLE_DEVICES=…"
_BUILD = "use a build of SGLang for this GPU and driver (--sglang-python)"
_KERNELS = f"{_BUILD}, or other kernels: --server-arg attention-backend=triton"
_MODEL = "name a folder of this machine or a model of the hub with --model"
_WHOLE = "see whether all of it was downloaded, and download it again"
_CACHES = "--server-env HF_HOME=… and TMPDIR=…"
_LARGER = "end what else holds the GPU, use more GPUs (--tp), or raise --server-arg mem-fraction-static=0.9"

#: Its port, and those between its processes.
_PORT = (
    _rule(
        r"attempting to bind on address \('(?P<host>[^']*)', (?P<port>\d+).*in use",
        "port {port} of {host} is taken",
        "end what listens there, or choose another with --port",
    ),
    _rule(
        r"attempting to bind on address \('(?P<host>[^']*)', (?P<port>\d+)[^)]*\): (?P<why>.*)",
        "port {port} of {host} cannot be opened: {why}",
        "choose another with --port",
    ),
    _rule(
        r"^ValueError: (?P<name>\w+) at (?P<port>\d+) is not available in \d",
        "port {port}, which SGLang uses between its processes ({name}), is taken",
        _PORTS,
    ),
    _rule(
        r"EADDRINUSE|ZMQError: Address already in use|server socket has failed to (?:bind|listen)"
        r"|engine_info_bootstrap_port \d+ is already in use",
        "a port that SGLang uses between its processes is taken",
        _PORTS,
    ),
)

_ARGUMENTS = (
    _rule(
        r": error: unrecognized arguments: (?P<flags>.+)",
        "this SGLang does not know {flags}",
        "take it out of --server-arg or the recipe (--recipe), or use another SGLang (--sglang-python)",
    ),
    _rule(
        r": error: argument (?P<flag>\S+): invalid choice: (?P<value>.+?) \(choose from",
        "SGLang's {flag} does not accept {value}",
        "correct it with --server-arg NAME=VALUE; the log lists what is accepted",
    ),
    _rule(
        r": error: (?P<why>(?:argument \S+: |the following arguments |ambiguous option).+)",
        "SGLang refuses its arguments: {why}",
        "correct them with --server-arg NAME=VALUE or in the recipe (--recipe)",
    ),
    _rule(
        r"^ValueError: .*context_length \((?P<asked>\d+)\) is greater than the derived context_length \((?P<has>\d+)\)",
        "a context of {asked} tokens is asked for, the model has {has}",
        "lower --server-arg context-length=N, or allow it: --server-env SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1",
    ),
)

_INSTALLATION = (
    _rule(
        r"No module named '?sglang'?\)?$",
        "the Python that was started has no SGLang",
        "name one that imports sglang with --sglang-python PATH",
    ),
    _rule(
        r"^(?:Module)?(?:NotFound|Import)Error: No module named '(?P<module>[^']+)'",
        "SGLang's Python lacks the module {module}",
        "install it there, or name another with --sglang-python PATH",
    ),
    _rule(
        r"^ImportError: (?P<module>aiter|flashinfer)\w* is (?:required|not)",
        "SGLang's Python lacks the module {module}",
        "install it there, or name another with --sglang-python PATH",
    ),
    _rule(
        r"(?<![\w.+-])(?P<library>[\w.+-]+): cannot open shared object file",
        "the shared library {library} is missing",
        "use the image or environment that SGLang was installed in (--sglang-python), or say where it is: "
        "--server-env LD_LIBRARY_PATH=…",
    ),
    _rule(
        r"Could not load any common_ops library|ImportError: .*(?:sgl_kernel|undefined symbol)",
        "SGLang's compiled kernels do not fit this GPU or its PyTorch",
        _BUILD,
    ),
    _rule(
        r"operator torchvision::\w+ does not exist|Could not import module '\w+'\. Are this object's requirements",
        "the packages beside SGLang do not fit each other (torch, torchvision, transformers)",
        "install the versions that SGLang asks for, or use the Python of its image (--sglang-python)",
    ),
)

_GPU = (
    _rule(
        r"no kernel image is available|hipErrorNoBinaryForGpu|invalid device function|hipErrorInvalidDeviceFunction",
        "a kernel was not built for this GPU's architecture",
        _KERNELS,
    ),
    _rule(
        r"No accelerator \(|Found no NVIDIA driver|No (?:CUDA|HIP) GPUs are available|not compiled with CUDA enabled"
        r"|no (?:CUDA|ROCm)-capable device",
        "SGLang sees no GPU",
        f"see nvidia-smi or amd-smi, what the container may use, and {_DEVICES}",
    ),
    _rule(
        r"[Uu]nable to open /dev/(?:kfd|dri)",
        "this user may not use the GPU",
        "join the groups video and render, or give the container /dev/kfd and /dev/dri",
    ),
    _rule(
        r"invalid device ordinal|hipErrorInvalidDevice\b",
        "fewer GPUs are visible than --tp asks for",
        f"lower --tp, or see {_DEVICES}",
    ),
    # Also a warning, which is no cause: hence the exception's name.
    _rule(
        r"^RuntimeError: The memory capacity is unbalanced",
        "something else holds memory of some of the GPUs",
        f"end it (nvidia-smi, amd-smi), or choose free GPUs: {_DEVICES}",
    ),
    _rule(
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        "the weights leave no GPU memory for the cache",
        _LARGER,
    ),
    _rule(
        rf"{_RAISED}(?P<why>.*(?:[Ii]ncrease|[Rr]aise) --mem-fraction-static.*)",
        "the cache has too little GPU memory: {why}",
        _LARGER,
    ),
    _rule(
        r"(?:CUDA|HIP) out of memory|OutOfMemoryError: |(?:CUDA|HIP) error: out of memory|hipErrorOutOfMemory"
        r"|CUBLAS_STATUS_ALLOC_FAILED",
        "GPU memory ran out",
        "end what else holds the GPU (nvidia-smi, amd-smi), use more GPUs (--tp), or keep less for the cache: "
        "--server-arg mem-fraction-static=0.8",
    ),
    _rule(
        r"illegal memory access|hipErrorIllegalAddress|Memory access fault by GPU|misaligned address"
        r"|unspecified launch failure|hipErrorLaunchFailure|HSA_STATUS_ERROR_",
        "a GPU kernel touched memory that is not its own, or the GPU failed",
        f"see dmesg for GPU faults; {_KERNELS}",
    ),
    _rule(
        r"IndexError: index out of range in self|device-side assert triggered",
        "a model got an index out of range, as from a token id beyond its vocabulary",
        "name the vocabulary of the model that is served: --vocab-size N or --tokenizer NAME|PATH",
    ),
)

_MACHINE = (
    _rule(
        r"No space left on device.*/dev/shm|/dev/shm.*No space left on device|[Uu]nable to allocate shared memory"
        r"|Error while creating shared memory segment",
        "shared memory (/dev/shm) is full",
        "remove what dead servers left there, or give the container more (--ipc=host, --shm-size 32g)",
    ),
    _rule(
        r"No space left on device|\[Errno 28\]|Disk quota exceeded",
        "a disk is full",
        f"make room where models and compiled kernels are cached, or move that: {_CACHES}",
    ),
    _rule(
        r"^MemoryError\b|DefaultCPUAllocator: (?:can't allocate|not enough) memory|Cannot allocate memory|\[Errno 12\]",
        "the machine's memory ran out",
        "end what else uses it, or give the container more",
    ),
    _rule(
        r"Too many open files|can't start new thread|pthread_create failed",
        "a limit of this machine was reached: files, threads or processes",
        "raise it (ulimit -n, ulimit -u, the container's --pids-limit)",
    ),
    _rule(
        r"^PermissionError: .*?'(?P<path>[^']+)'",
        "SGLang may not use {path}",
        f"let this user read and write there, or move caches: {_CACHES}",
    ),
)

_CHECKPOINT = (
    _rule(
        r"Repo id must be in the form .*?: '(?P<model>[^']+)'",
        "there is no folder {model}",
        _MODEL,
    ),
    _rule(
        r"(?<!\S)(?P<model>\S+) is not a local folder and is not a valid model identifier",
        "neither a folder nor a model of the hub is called {model}, or it is private",
        f"{_MODEL}; for a private one set HF_TOKEN in the environment",
    ),
    _rule(
        r"gated repo|GatedRepoError|RepositoryNotFoundError|40[13] Client Error.*huggingface",
        "the hub does not give this model out: it is gated, private or not there",
        f"accept its terms at the hub and set HF_TOKEN in the environment, or {_MODEL}",
    ),
    _rule(
        r"We couldn't connect to '[^']+' to load|LocalEntryNotFoundError|OfflineModeIsEnabled"
        r"|Cannot find an appropriate cached snapshot folder|outgoing traffic has been disabled",
        "the model is not on this machine, and the hub cannot be reached",
        "name its folder with --model, or say where the cache is: --server-env HF_HOME=…",
    ),
    _rule(
        r"does not appear to have a file named (?P<file>[^\s,]+)",
        "the model's folder is incomplete: it has no {file}",
        _WHOLE,
    ),
    _rule(
        r"Cannot find any model weights with .(?P<model>[^`']+)",
        "{model} holds no weights",
        _WHOLE,
    ),
    _rule(
        r"SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader|PytorchStreamReader failed",
        "a file of the model's weights is damaged or cut short",
        _WHOLE,
    ),
    _rule(
        r"contains custom code which must be executed|requires you to execute the \w+ file|--trust-remote-code. flag",
        "the model comes with code of its own, which SGLang was not told to trust",
        "if you trust it: --server-arg trust-remote-code",
    ),
    _rule(
        r"model type [`'](?P<type>[^`']+)[`'] but Transformers does not recognize",
        "transformers beside this SGLang does not know the model type {type}",
        "use a newer one (--sglang-python), or another --model",
    ),
    _rule(
        r"Model architectures (?P<type>.+?) (?:are not supported|failed)",
        "this SGLang does not know the architecture {type}",
        "use a newer one (--sglang-python), or another --model",
    ),
    _rule(
        r"does not match the quantization method specified|Cannot find the config file for|Unknown quantization method"
        r"|Invalid quantization method|quantization is currently not|Invalid quant_config"
        r"|quantization method \S+ is not supported for the current GPU",
        "the model's quantisation is not the one asked for, or not for this GPU",
        "take quantization out of --server-arg or the recipe (--recipe), or use a --model quantised for this GPU",
    ),
    _rule(
        rf"{_RAISED}(?P<why>.*(?:is not divisible by|must be divisible by|tp_size must).*)",
        "the model cannot be split over so many GPUs: {why}",
        "choose another --tp",
    ),
    _rule(
        rf"{_RAISED}.*(?:size mismatch for|loaded_weight)|^KeyError: '(?:model|lm_head)\.",
        "the weights do not fit the model that SGLang built for them",
        "see that --model is one whole checkpoint, and that its quantisation is the one asked for",
    ),
)

#: Killed from outside. What else is in the log is then the other processes' reaction, but for words of `_ROOTS`.
_KILLED = (
    _rule(
        r"Rank (?P<rank>\d+) scheduler died during initialization \(exit code: -9\)",
        "the scheduler of rank {rank} was killed (SIGKILL) while it started, as the kernel does where memory runs out",
        "see dmesg for the OOM killer; end what else uses memory, or give the container more",
    ),
    _rule(
        r"Subprocess (?P<name>\S+) \(pid=(?P<pid>\d+)\) crashed with exit code -9\b",
        "SGLang's process {name} (pid {pid}) was killed (SIGKILL), by somebody or by the kernel for want of memory",
        "see dmesg for the OOM killer; end what else uses memory, or give the container more",
    ),
    _rule(
        r"^SIGTERM received\.|crashed with exit code -15\b",
        "somebody asked the server to end (SIGTERM)",
        "see what manages processes here: a job's time limit, a container's stop",
    ),
)

#: What may follow from another process's end, or is known in outline only.
_VAGUE = (
    # A soft watchdog writes stacks and goes on.
    _rule(
        r"[Ww]atchdog timeout \(self\.watchdog_timeout=(?P<limit>[\d.]*\d)(?!.*soft=True)",
        "a step took the scheduler longer than its watchdog allows ({limit} s)",
        "if it was compiling kernels, start again, which finds them made, or allow more: "
        "--server-arg watchdog-timeout=3600; else see dmesg for GPU faults",
    ),
    _rule(
        r"Watchdog caught collective operation timeout|\bnccl\w*Error\b|(?:NCCL|RCCL) error"
        r"|Connection (?:closed|reset) by (?:remote )?peer|Dist(?:Network|Backend|Store)Error",
        "the GPUs lost each other (NCCL or RCCL)",
        "see dmesg for a GPU or link that failed, and the log for what ended first",
    ),
    _rule(
        r"[Cc]apture .*[Gg]raph failed: (?P<why>.*)",
        "capturing CUDA graphs failed: {why}",
        "keep less for the cache: --server-arg mem-fraction-static=0.8",
    ),
    _rule(
        r"Initialization failed\. warmup error",
        "the server did not answer its own first request",
        "see the traceback in its log, and whether something else answers on its port (--port)",
    ),
    _rule(
        rf"{_RAISED}(?P<why>.*(?:[Bb]ackend|[Aa]ttention|SM\d+).*(?:support|require).*)",
        "these kernels are not for this GPU or model: {why}",
        _KERNELS,
    ),
    _rule(
        rf"{_RAISED}(?P<why>.*--[a-z][\w-]+.*)",
        "SGLang refuses its arguments: {why}",
        "change them with --server-arg NAME=VALUE or another --recipe",
    ),
)

_STATUS = "see its log and dmesg; -6 is its own abort (SIGABRT), -11 a crash in compiled code (SIGSEGV)"

#: These say that it ended, and how.
_ENDS = (
    _rule(
        r"Subprocess (?P<name>\S+) \(pid=(?P<pid>\d+)\) crashed with exit code (?P<code>-?\d+)",
        "SGLang's process {name} (pid {pid}) ended with status {code}",
        _STATUS,
    ),
    _rule(
        r"Rank (?P<rank>\d+) scheduler died during initialization \(exit code: (?P<code>-?\w+)\)",
        "the scheduler of rank {rank} ended with status {code} while it started",
        _STATUS,
    ),
)

_ROOTS = (*_PORT, *_ARGUMENTS, *_INSTALLATION, *_GPU, *_MACHINE, *_CHECKPOINT)

#: Words of an earlier group explain those of a later one. Within a group the log's last line counts, and for a line the
#: first rule.
GROUPS = (_ROOTS, _KILLED, _VAGUE, _ENDS)
