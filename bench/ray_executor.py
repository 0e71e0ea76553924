"""Tasks on the machines of a Ray cluster, or on this one's cores (``deidbench run --executor ray``; ``pip install 'deidbench[ray]'``).

A worker is an actor with one core and one thread.  It is given at most two tasks at a time, those of its shard first
(:mod:`deidbench.shards`).  A worker that is lost (killed, out of memory, its machine gone) costs the batch that it was at: a fresh one
takes its place, and the batch is done again by whoever comes to it.  A batch that ends its worker three times ends the run.

Tasks and results are pickled here, not by Ray: arrays that Ray itself hands over cannot be written to, and a metric may do that.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from deidbench import __version__
from deidbench.errors import DeidbenchError, EnvironmentFault, InputError, MissingError
from deidbench.executors import THREAD_VARIABLES, cores
from deidbench.remote_store import Keeper, RemoteStore
from deidbench.shards import Queues

R = TypeVar("R")

#: How often a batch may end its worker.
STRIKES = 3
#: How often in a row a worker may fail to start before it has done anything.
STARTS = 3
#: Seconds without a single worker at work after which the cluster is given up; machines may have to be started first.
PATIENCE = 600.0
#: Tasks that a worker holds: the one that it is at and the next, so that it need not wait for us.
HELD = 2
#: Workers that share a keeper of the store.
PER_KEEPER = 16
#: Bytes that Ray may take of this machine's shared memory, where we start it; more goes to the disk.
OBJECTS = 512 << 20

INSTALL = "pip install 'deidbench[ray]'"


def _ray() -> Any:
    """Ray, imported when it is needed, with its reports to its makers turned off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do one day
    # It would print, on standard output, that a worker was lost; that is for us to tell, and --json has standard output for itself.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise MissingError(f"--executor ray needs Ray, which cannot be imported here: {error}", INSTALL) from error
    return ray


class Session:
    """A connection to Ray, made on first use, and the store that its workers are to have.

    address: of a cluster ("auto" or HOST:PORT; None: ``$RAY_ADDRESS``); where there is none, Ray is started on this machine, and
    :meth:`close` ends it.  A cluster that was joined is left running, and a connection that was there before is left open.
    store: the store's folder, None for tasks that use none.
    """

    def __init__(self, address: str | None = None, store: Path | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingError("--executor ray needs Ray, which is not installed", INSTALL)
        self.address = address or os.environ.get("RAY_ADDRESS") or None
        self.store = None if store is None else Path(store).resolve()
        if self.address and self.address.startswith("ray://"):
            raise InputError(
                f"the Ray address {self.address} is a client's: the run must be on a machine of the cluster, which has the store",
                "start deidbench on a machine of the cluster (there is ray job submit) with --ray-address auto",
            )
        #: Workers that were lost, and replaced.
        self.lost = 0
        #: Machines that tasks were done on.
        self.nodes: set[str] = set()
        self._workers = 0
        self._version = ""
        self._ray: Any = None
        self._ours = False

    def connect(self, workers: int = 0) -> Any:
        """Ray itself, connected.  workers: how many are wanted, where a cluster is to be started.

        Raises MissingError without Ray, EnvironmentFault where nothing answers.
        """
        if self._ray is None:
            ray = _ray()
            if not ray.is_initialized():
                quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
                try:
                    if self.address:
                        ray.init(address=self.address, **quiet)
                    else:
                        ray.init(
                            address="local",
                            num_cpus=workers or cores(),
                            include_dashboard=False,
                            object_store_memory=OBJECTS,
                            **quiet,
                        )
                    self._ours = True
                except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                    raise EnvironmentFault(
                        f"no Ray cluster answers at {self.address}: {_first_line(error)}"
                        if self.address
                        else f"Ray cannot be started here: {_first_line(error)}",
                        "ray status tells of a cluster on this machine, ray start --head starts one; without --ray-address one of "
                        "this machine's cores is started for the run",
                    ) from error
            self._ray, self._version = ray, str(ray.__version__)
        return self._ray

    def cores(self) -> int:
        """Of the whole cluster."""
        return max(1, int(self.connect().cluster_resources().get("CPU", 0)))

    def executor(self, workers: int, initialise: Callable[..., None], arguments: tuple[Any, ...]) -> RayExecutor:
        """``workers`` = 0: one for each core of the cluster."""
        return RayExecutor(self, workers, initialise, arguments)

    def record(self) -> dict[str, Any]:
        """What ran, for the run's record; without names or addresses of machines."""
        return {
            "name": "ray",
            "version": self._version,
            "joined": bool(self.address),
            "workers": self._workers,
            "nodes": len(self.nodes),
            "lost_workers": self.lost,
        }

    def close(self) -> None:
        if self._ray is not None and self._ours:
            self._ray.shutdown()
        self._ray, self._ours = None, False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Worker:
    """The actor.  Answers are ("done", bytes), or another word and what belongs to it: Ray would wrap what is raised."""

    def __init__(self, folder: str) -> None:
        if Path(folder).is_dir():  # relative names mean the same here
            os.chdir(folder)

    def begin(self, version: str, payload: bytes, fingerprints: object, keeper: Any) -> tuple[str, Any]:
        """Makes this process ready; ("ready", (machine, process))."""
        import signal

        import cloudpickle
        import ray

        if version != __version__:
            return "unlike", f"deidbench {__version__} is there, {version} here"
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started the run
        try:
            initialise, arguments = cloudpickle.loads(payload)
            if keeper is None:
                initialise(*arguments)
            else:
                initialise(*arguments, store=RemoteStore(keeper))
            if fingerprints is not None and (other := _fingerprints(arguments)) != fingerprints:
                return "unlike", f"weights or parts differ: {_difference(other, fingerprints)}"
        except BaseException as error:
            return "raised", _packed(error)
        return "ready", (ray.get_runtime_context().get_node_id(), os.getpid())

    def work(self, payload: bytes, seen: str | None) -> tuple[str, Any]:
        """seen: a file that whoever started the run can read, None where there is none."""
        import cloudpickle

        if seen is not None:
            try:
                with Path(seen).open("rb"):
                    pass
            except OSError as error:
                return "blind", (platform.node(), str(error))
        try:
            function, task = cloudpickle.loads(payload)
            return "done", cloudpickle.dumps(function(task))
        except BaseException as error:
            return "raised", _packed(error)


def _packed(error: BaseException) -> bytes:
    """An exception as it can travel; where it cannot, what it said.  Our own mistakes bring their trace along."""
    import cloudpickle

    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, DeidbenchError):
        error.add_note(f"in a worker:\n{trace}")
    try:
        data: bytes = cloudpickle.dumps(error)
        cloudpickle.loads(data)
    except Exception:
        data = cloudpickle.dumps(RuntimeError(f"in a worker:\n{trace}"))
    return data


def _fingerprints(arguments: Sequence[Any]) -> object:
    """Of a plan's parts, which depend on the weight files of a machine; None where there is no plan."""
    from deidbench.pipeline import Fingerprints, Plan

    return vars(Fingerprints(arguments[0])) if arguments and isinstance(arguments[0], Plan) else None


def _difference(there: Any, here: Any) -> str:
    return ", ".join(k for k in here if there.get(k) != here[k]) if isinstance(there, dict) else "no plan"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@dataclass(eq=False)
class _Slot:
    """A worker's place.  begun: answers once the actor is ready, None afterwards.  held: what it was given, oldest first."""

    number: int
    actor: Any
    begun: Any
    node: str = ""
    pid: int = 0
    looked: bool = False
    held: dict[Any, int] = field(default_factory=dict)


class RayExecutor:
    """See :class:`deidbench.executors.Executor`."""

    def __init__(self, session: Session, workers: int, initialise: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.session, self._asked = session, workers
        self._initialise, self._arguments = initialise, arguments
        self._slots: list[_Slot] = []
        self._keepers: list[Any] = []
        self._begin: tuple[Any, ...] = ()
        self._bad_starts = 0

    @property
    def workers(self) -> int:
        """How many there are, or are going to be; looks at the cluster where nobody said it."""
        return len(self._slots) or self._asked or self.session.cores()

    @property
    def pids(self) -> list[int]:
        """Processes of the workers that are ready."""
        return [s.pid for s in self._slots if s.begun is None]

    # -- starting ------------------------------------------------------------------------------------------------
    def _start(self) -> Any:
        import cloudpickle

        ray = self.session.connect(self._asked)
        if self._slots:
            return ray
        workers = self._asked or self.session.cores()
        if self.session.store is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            # What a keeper does may be done twice, so that one that dies is started again and asked again.
            kind = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Keeper)
            self._keepers = [kind.remote(str(self.session.store)) for _ in range(-(-workers // PER_KEEPER))]
        payload = ray.put(cloudpickle.dumps((self._initialise, self._arguments)))
        self._begin = (__version__, payload, _fingerprints(self._arguments))
        self._slots = [self._fresh(i) for i in range(workers)]
        self.session._workers = workers
        return ray

    def _fresh(self, number: int) -> _Slot:
        ray = self.session.connect()
        passed = {k: v for k, v in os.environ.items() if k.startswith("DEIDBENCH_")}
        kind = ray.remote(
            num_cpus=1,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {**dict.fromkeys(THREAD_VARIABLES, "1"), **passed}},
        )(_Worker)
        actor = kind.remote(str(Path.cwd()))
        keeper = self._keepers[number % len(self._keepers)] if self._keepers else None
        return _Slot(number, actor, actor.begin.remote(*self._begin, keeper))

    # -- running -------------------------------------------------------------------------------------------------
    def run(self, function: Callable[[Any], R], tasks: Sequence[Any]) -> Iterator[tuple[int, R]]:
        """Raises what a task raises, and EnvironmentFault where the cluster is of no use."""
        if not tasks:
            return  # nothing is started for it
        try:
            self._start()
            for slot in self._slots:
                slot.looked = False
            yield from _Run(self, function, tasks).results()
        except BaseException:
            self.close()  # whatever is at work is ended
            raise

    def replace(self, slot: _Slot) -> None:
        """A fresh worker in the place of a lost one."""
        self._end(slot)
        self._slots[slot.number] = self._fresh(slot.number)
        self.session.lost += 1

    def started(self, slot: _Slot, word: str, said: Any) -> None:
        """What an actor that begins has to say."""
        import cloudpickle

        if word == "raised":
            raise cloudpickle.loads(said)
        if word == "unlike":
            raise EnvironmentFault(f"a machine of the cluster is not like this one: {said}", "install the same on all machines")
        slot.begun, (slot.node, slot.pid), self._bad_starts = None, said, 0
        self.session.nodes.add(slot.node)

    def did_not_start(self, why: BaseException) -> None:
        self._bad_starts += 1
        if self._bad_starts >= STARTS * len(self._slots):
            raise EnvironmentFault(
                f"workers do not start on the cluster: {str(why).strip()[-600:]}",
                f"install the same deidbench on all machines: {INSTALL}",
            )

    def _end(self, slot: _Slot) -> None:
        self.session.connect().kill(slot.actor)

    def close(self) -> None:
        """Ends the workers; Ray itself stays until the session is closed."""
        if self.session._ray is not None and self.session._ray.is_initialized():
            for actor in [*(s.actor for s in self._slots), *self._keepers]:
                self.session._ray.kill(actor)
        self._slots, self._keepers, self._begin, self._bad_starts = [], [], (), 0


class _Run:
    """One call of :meth:`RayExecutor.run`."""

    def __init__(self, executor: RayExecutor, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        self.executor, self.function, self.tasks = executor, function, tasks
        self.ray = executor.session.connect()
        self.queues = Queues(tasks, len(executor._slots))
        self.strikes: Counter[int] = Counter()
        self.seen = self._readable()
        self.alive = time.monotonic()

    def _readable(self) -> str | None:
        """A file of the data that can be read here, and so must be readable for everybody."""
        for task in self.tasks[:64]:
            for sample in getattr(task, "samples", ()):
                path = getattr(sample, "path", None)
                if path is not None and os.access(path, os.R_OK):
                    return str(path)
        return None

    def results(self) -> Iterator[tuple[int, Any]]:
        import cloudpickle

        slots = self.executor._slots
        while True:
            self._feed()
            waiting = {ref: s for s in slots for ref in (s.held if s.begun is None else (s.begun,))}
            if not any(s.held for s in slots) and not self.queues:
                return
            ready, _ = self.ray.wait(list(waiting), num_returns=1, timeout=5)
            if ready:  # and whatever else is
                ready, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for ref in ready:
                slot = waiting[ref]
                if slots[slot.number] is not slot:
                    continue  # lost a moment ago, with all that it held
                try:
                    word, said = self.ray.get(ref)
                except self.ray.exceptions.RayError as error:
                    self._lost(slot, error)
                    continue
                if slot.begun is not None:
                    self.executor.started(slot, word, said)
                    continue
                i = slot.held.pop(ref)
                if word == "blind":
                    machine, why = said
                    raise EnvironmentFault(
                        f"the machine {machine} cannot read the data: {why}",
                        "every machine of the cluster needs them under the same path (a shared drive, or a copy)",
                    )
                if word == "raised":
                    raise cloudpickle.loads(said)
                yield i, cloudpickle.loads(said)
            self._look_at_the_clock(bool(ready))

    def _feed(self) -> None:
        """Tasks for whoever has none, then a second one for everybody."""
        import cloudpickle

        for depth in range(HELD):
            for slot in self.executor._slots:
                if slot.begun is not None or len(slot.held) > depth or (i := self.queues.take(slot.number)) is None:
                    continue
                payload = cloudpickle.dumps((self.function, self.tasks[i]))
                seen, slot.looked = (None if slot.looked else self.seen), True
                try:
                    slot.held[slot.actor.work.remote(payload, seen)] = i
                except self.ray.exceptions.RayError as error:
                    self.queues.give_back(slot.number, i)
                    self._lost(slot, error)

    def _lost(self, slot: _Slot, error: BaseException) -> None:
        """A worker is no more: what it held waits again, and a fresh one is started."""
        if slot.begun is not None:
            self.executor.did_not_start(error)
        held = list(slot.held.values())
        gone = any(n["NodeID"] == slot.node and not n["Alive"] for n in self.ray.nodes())
        if held and not gone:  # where the machine went the batch is not to blame
            self.strikes[held[0]] += 1
            if self.strikes[held[0]] >= STRIKES:
                samples = getattr(self.tasks[held[0]], "samples", ())
                which = f"the batch that begins with {samples[0].id}" if samples else f"task {held[0]}"
                raise EnvironmentFault(
                    f"{which} ended its worker {STRIKES} times (killed, out of memory, or a native library crashed)",
                    "look at that image; a smaller --batch needs less memory.  The same command goes on from here",
                ) from error
        for i in reversed(held):
            self.queues.give_back(slot.number, i)
        self.executor.replace(slot)

    def _look_at_the_clock(self, something: bool) -> None:
        now = time.monotonic()
        if something or any(s.held for s in self.executor._slots):
            self.alive = now
        elif now - self.alive > PATIENCE:
            total, free = (r().get("CPU", 0) for r in (self.ray.cluster_resources, self.ray.available_resources))
            raise EnvironmentFault(
                f"no worker could be started for {PATIENCE:.0f} s: the cluster has {total:g} cores, {free:g} of them free",
                "wait for other jobs of the cluster, or add machines; ray status tells more",
            )
