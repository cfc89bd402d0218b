"""Environments in processes of their own, behind the same protocol: for machines with more cores than torch needs.

`parallel_envs` returns a list of `Env`s; `planet.rollout.run_episodes` then resets and steps all of them at once. Every
process is started afresh (a fork of a process that has drawn would hang), imports the simulator but no torch, and has
its own GL context. Episodes are the same as without processes, bit for bit.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from planet.config import EnvConfig
from planet.envs import Env, PadActions, Step, make_env
from planet.tasks import Task

FOR_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that ask a run to stop. Often the whole process group gets them (scancel, Ctrl-C), but the run must still be
able to save: its simulators do not hear them and end with their pipe."""


def parallel_envs(
    task: Task, config: EnvConfig, count: int, *, processes: int | None = None, action_size: int | None = None
) -> list[RemoteEnv]:
    """Return `count` environments of a task, spread over `processes` processes (default: one each, at most the cores).

    Args:
        action_size: if given, actions are padded to it (`PadActions`).

    Raises:
        RuntimeError: a process died, or what `make_env` raises in it. The other processes are ended then.
    """
    if processes is None:
        processes = min(count, len(os.sched_getaffinity(0)))
    if not 1 <= processes <= count:
        raise ValueError(f"processes must be in 1..{count} (the environments), got {processes}")
    workers = [Worker(number) for number in range(processes)]
    try:
        shares = [(worker, len(range(n, count, processes))) for n, worker in enumerate(workers)]
        numbers = [worker.send("make", (task, config, action_size, share)) for worker, share in shares]
        facts = [worker.receive(number) for worker, number in zip(workers, numbers, strict=True)]
    except BaseException:
        for worker in workers:
            worker.close()
        raise
    return [RemoteEnv(workers[n % processes], n // processes, *facts[n % processes]) for n in range(count)]


class RemoteEnv:
    """One environment of a worker process. `begin_*` asks, `end_*` waits for the answer."""

    def __init__(self, worker: Worker, index: int, action_size: int, action_repeat: int, agent_steps: int) -> None:
        self.action_size = action_size
        self.action_repeat = action_repeat
        self.agent_steps = agent_steps
        self._worker = worker
        self._index = index
        self._number = 0
        worker.users += 1
        self._closed = False

    def begin_reset(self, seed: int) -> None:
        """Ask for `reset(seed)`; `end_reset` returns what it returns."""
        self._number = self._worker.send("reset", (self._index, seed))

    def end_reset(self) -> UInt8[np.ndarray, "3 64 64"]:
        """Wait for the first picture."""
        return self._worker.receive(self._number)

    def begin_step(self, action: Float32[np.ndarray, " action"]) -> None:
        """Ask for `step(action)`; `end_step` returns what it returns."""
        self._number = self._worker.send("step", (self._index, action))

    def end_step(self) -> Step:
        """Wait for the decision's outcome, or raise what it raised."""
        return self._worker.receive(self._number)

    def reset(self, seed: int) -> UInt8[np.ndarray, "3 64 64"]:
        """See `Env.reset`."""
        self.begin_reset(seed)
        return self.end_reset()

    def step(self, action: Float32[np.ndarray, " action"]) -> Step:
        """See `Env.step`."""
        self.begin_step(action)
        return self.end_step()

    def close(self) -> None:
        """End the process with the last of its environments."""
        if not self._closed:
            self._closed = True
            self._worker.users -= 1
            if self._worker.users == 0:
                self._worker.close()


PATIENCE = 300.0
"""Seconds to wait for an answer: a busy machine takes tens to load everything and to draw the first picture."""


class Worker:
    """A process and the pipe to it. Requests are numbered, so that an answer nobody waited for is passed over."""

    def __init__(self, number: int) -> None:
        self.users = 0
        self._name = f"environment process {number}"
        self._counter = itertools.count(1)
        self._pipe, theirs = Pipe()
        # Blocked here for a moment, they are blocked in the process from its first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_RUN)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "planet.parallel_envs", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                    # One picture is one tile to Mesa: its own threads would only get in each other's way.
                    env=os.environ | {"LP_NUM_THREADS": "0"},
                )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def send(self, request: str, arguments: tuple[Any, ...]) -> int:
        """Ask for something; return the number of the request."""
        number = next(self._counter)
        try:
            self._pipe.send((number, request, arguments))
        except OSError:
            raise self._death() from None
        return number

    def receive(self, number: int) -> Any:
        """Wait for the answer to a request, or raise what was raised in the process."""
        while True:
            try:
                if not self._pipe.poll(PATIENCE):
                    raise self._death()
                answered, failed, answer = self._pipe.recv()
            except (EOFError, OSError):
                raise self._death() from None
            if answered == number:
                break
        if failed:
            answer.add_note(f"in {self._name}")
            raise answer
        return answer

    def close(self) -> None:
        """End the process: it goes when its pipe closes, or is made to."""
        self._pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _death(self) -> RuntimeError:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return RuntimeError(f"{self._name} does not answer (process {self._process.pid}); what does it wait for?")
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RuntimeError(f"{self._name} ended ({reason}); out of memory, or killed from outside?")


def serve(pipe: Connection, make: Callable[[Task, EnvConfig], Env]) -> None:
    """Answer requests until the other side closes the pipe (or dies)."""
    envs: list[Env] = []

    def answer(request: str, arguments: tuple[Any, ...]) -> Any:
        if request == "make":
            task, config, action_size, share = arguments
            envs.extend(make(task, config) for _ in range(share))
            if action_size is not None:
                envs[:] = [PadActions(env, action_size) for env in envs]
            return envs[0].action_size, envs[0].action_repeat, envs[0].agent_steps
        index, argument = arguments
        return envs[index].reset(argument) if request == "reset" else envs[index].step(argument)

    while True:
        try:
            number, request, arguments = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            message = (number, False, answer(request, arguments))
        except Exception as error:
            message = (number, True, error)
        try:
            pipe.send(message)
        except OSError:
            break
        except Exception:  # an error that cannot be sent as it is
            pipe.send((number, True, RuntimeError(f"{type(message[2]).__name__}: {message[2]}")))
    for env in envs:
        env.close()


def main() -> None:
    """Entry point of a worker process, in which `FOR_THE_RUN` is blocked."""
    serve(Connection(int(sys.argv[1])), make_env)


if __name__ == "__main__":
    main()
