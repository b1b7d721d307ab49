"""The session's servers, in the process that owns it: chosen, asked, locked, handed to workers, stopped."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_dsr1.core.config import Mode, Point, SweepConfig
from pytest_dsr1.core.routing import server_problem
from pytest_dsr1.core.server import changes_between
from pytest_dsr1.lock import ServerBusyError, ServerLock
from pytest_dsr1.preflight import require_context
from pytest_dsr1.servers import Served, Server, ServerError, Voice
from pytest_dsr1.servers.choose import Choice, choose
from pytest_dsr1.servers.plan import LaunchPlan


class Serving:
    """The server of the session, as `servers.Server` is; with --server-url repeated, several of them.

    :param purpose: For another session that finds the server locked.
    :param on_served: Told of each server that answers, and for which point it was asked; a ServerError refuses it.
    :param concurrent: How many are measured at the same time.
    """

    def __init__(
        self,
        config: SweepConfig,
        environ: Mapping[str, str],
        voice: Voice,
        *,
        purpose: str,
        on_served: Callable[[Served, Point | None], None],
        concurrent: int = 1,
    ) -> None:
        self._config = config
        self._purpose = purpose
        self._on_served = on_served
        self._concurrent = concurrent
        self._choice: Choice = choose(config, environ, config.reports_dir / "servers", voice)
        self._locks: dict[str, ServerLock] = {}
        self._served: dict[int, Served] = {}
        self._free = list(range(concurrent))
        self._bound: dict[object, int] = {}
        self._failure: ServerError | None = None
        self._results: dict[Any, Mapping[str, Any]] = {}

    # -- what is known before anything is started ---------------------------------------------------------------

    @property
    def why(self) -> str:
        """Who serves, and why."""
        return self._choice.why

    @property
    def running(self) -> bool:
        return self._choice.running

    @property
    def is_reference(self) -> bool:
        return self._choice.is_reference

    @property
    def plan(self) -> LaunchPlan | None:
        """How the server is launched; None for one that is not."""
        return self._choice.plan

    @property
    def served(self) -> tuple[Served, ...]:
        """Those that have answered."""
        return tuple(self._served.values())

    def ask_all(self) -> tuple[Served, ...]:
        """Every server that will be measured.

        :raises ServerError: One does not answer, or they serve different models.
        """
        found = tuple(self._serve(place, None) for place in range(self._concurrent))
        for other in found[1:]:
            if (other.model, other.engine) != (found[0].model, found[0].engine):
                raise ServerError(
                    f"{found[0].url} serves {found[0].model} ({found[0].engine}) and {other.url} {other.model} "
                    f"({other.engine}): one sweep measures one model; choose it with --model, or drop a --server-url"
                )
        return found

    # -- servers.Server, for measurements in this process -------------------------------------------------------

    def serve(self, point: Point | None = None) -> Served:
        return self._serve(0, point)

    def inspect(self) -> Served:
        return self._complete(self._server(0).inspect())

    def flush_cache(self) -> None:
        self._server(0).flush_cache()

    def problem(self, patience_s: float) -> str:
        return self._server(0).problem(patience_s)

    def stop(self) -> None:
        for server in self._choice.servers:
            server.stop()
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()

    # -- for workers ----------------------------------------------------------------------------------------------

    def bind(self, worker: object, point: Point) -> Served:
        """A server for an xdist worker, which no other worker has.

        Not by the worker's name: one that replaces a crashed worker gets another name, and the same server.

        :raises ServerError: It does not answer.
        """
        place = self._free.pop(0)
        self._bound[worker] = place
        return self._serve(place, point)

    def release(self, worker: object) -> None:
        if worker in self._bound:
            self._free.insert(0, self._bound.pop(worker))

    # -- at the end -----------------------------------------------------------------------------------------------

    def farewell(self, *, interrupted: bool) -> Sequence[str]:
        """What is to be known of it when the session is over."""
        return self._server(0).farewell(interrupted=interrupted)

    def changes_since_last(self, server: Mapping[str, Any]) -> str:
        """What is not as in the result before this one of the same server: others restarted it, or set it otherwise.

        :param server: The `server` object of a result.
        """
        url = server.get("url")
        before, self._results[url] = self._results.get(url), server
        # A launch of ours is noted as such.
        if before is None or before.get("launch") != server.get("launch"):
            return ""
        return "; ".join(changes_between(before, server))

    def _server(self, place: int) -> Server:
        return self._choice.servers[place]

    def _serve(self, place: int, point: Point | None) -> Served:
        # A start that failed fails again, and takes its time again.
        if self._failure is not None:
            raise self._failure
        try:
            served = self._complete(self._server(place).serve(point))
            if served.url not in self._locks:
                lock = ServerLock(served.url)
                lock.acquire(self._purpose)
                self._locks[served.url] = lock
            self._on_served(served, point)
        except (ServerError, ServerBusyError) as error:
            self._failure = error if isinstance(error, ServerError) else ServerError(str(error))
            raise self._failure from None
        except OSError as error:
            self._failure = ServerError(f"the server cannot be locked: {error.filename}: {error.strerror}")
            raise self._failure from None
        self._served[place] = served
        return served

    def _complete(self, served: Served) -> Served:
        return replace(served, concurrent_servers=self._concurrent)


def require_measurable(config: SweepConfig, serving: Serving, workers: int) -> None:
    """Find out now what would otherwise be found wrong after minutes of waiting.

    :raises ServerError, ValueError: The sweep cannot be measured on this server, or not submitted.
    """
    _require_submittable(config, serving, reference=serving.is_reference)
    if serving.plan is not None and workers:
        _refuse_restarts(serving.plan, config, workers)
    if serving.running:
        served = serving.ask_all()[0]
        _require_submittable(config, serving, reference=served.is_reference, gpus_known=served.num_gpus is not None)
        _require_inputs(config, served)


def _require_submittable(config: SweepConfig, serving: Serving, *, reference: bool, gpus_known: bool = True) -> None:
    if config.mode is Mode.SUBMIT and (
        problem := server_problem(config, serving.why, reference=reference, gpus_known=gpus_known)
    ):
        raise ServerError(problem)


def _refuse_restarts(plan: LaunchPlan, config: SweepConfig, workers: int) -> None:
    launches = plan.launches(config.points)
    if len(launches) > 1:
        raise ServerError(
            f"-n {workers}: recipe {plan.recipe.name} starts the server anew for {launches[1][1][0].id} "
            f"({launches[1][0].changes(launches[0][0])}), which a worker cannot ask for; run without -n, or fix these "
            "with --server-arg"
        )


def _require_inputs(config: SweepConfig, served: Served) -> None:
    from pytest_dsr1.accuracy import AccuracyError
    from pytest_dsr1.bench import accuracy_source, prompt_plan

    if config.mode is not Mode.ACC:
        for scenario in config.scenarios:
            require_context(scenario, served)
        prompt_plan(config, served)
    if config.accuracy:
        try:
            accuracy_source(config, served)
        except AccuracyError as error:
            raise ServerError(str(error)) from None


def launch_note(launch: Mapping[str, Any]) -> str:
    """A launch in one line of a summary: recipe, command line as a shell would take it, log."""
    words = [f"{name}={shlex.quote(value)}" for name, value in launch["environment"].items()]
    command = " ".join([*words, shlex.join(launch["command"])])
    return f"launched by recipe {launch['recipe']} in {launch['start_s']:.0f} s: {command}; log: {launch['log']}"
