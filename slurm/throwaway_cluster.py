"""A real Slurm on this one machine, for tests: several nodes, fake GPUs, preemption. Debian's packages, run as root.

    python slurm/throwaway_cluster.py up DIR      start (a cluster that is up is left as it is); prints what to export
    python slurm/throwaway_cluster.py down DIR    stop everything that was started in DIR

Everything lives in DIR: configuration, keys, logs, state. Nothing under /etc or /run is touched, no systemd, no
cgroups, no accounting database (our tools need none). Only processes named in DIR/run are ever signalled.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
UP = ("idle", "mixed", "allocated", "completing")
"""States of a node that is there, with jobs or without."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
{listen}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for its old credential to expire. 5 s is the least Slurm takes; the default is 120.
AuthInfo=socket={dir}/run/munge.socket,cred_expire=5
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
# Nodes may claim more cores and memory than this machine has.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}
JobRequeue=1
MaxArraySize=1001
# Long enough for a run to save and for a node to be heard on a machine that is busy with other things.
KillWait=20
SlurmdTimeout=60
CompleteWait=0
InactiveLimit=0
MinJobAge=300
OverTimeLimit=0
SlurmctldTimeout=30
# 1: a node set down stays down until it registers anew. With 2 a live one would come back at the next ping.
ReturnToService=1
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=64000 \
Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE \
GraceTime={grace} State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing_programs() -> list[str]:
    """Return which of Slurm's programs are not installed here; also `root`, if this is not root."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return absent if os.geteuid() == 0 else [*absent, "root"]


@dataclass
class Cluster:
    """One cluster in one folder. `start()`, then use Slurm's programs with `environment` added to yours; `stop()`."""

    folder: Path
    nodes: int = 3
    gpus: int = 4
    """Fake GPUs per node: device files that lead to /dev/null."""
    base_port: int | None = None
    """slurmctld's port; the nodes take the ports after it. None: free ones."""

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        # Unix sockets below it have at most 108 bytes in their names.
        if len(str(self.folder)) > 60:
            raise ValueError(f"the folder's path must be at most 60 characters long, got {self.folder}")

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def start(self) -> None:
        """Start what does not run.

        Raises:
            RuntimeError: a daemon did not come up; the message has the end of its log.
        """
        absent = missing_programs()
        if absent:
            raise RuntimeError(
                f"no cluster without {', '.join(absent)}; slurm/install_system_packages.sh installs Slurm"
            )
        for name in ("etc", "run", "log", "state", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "etc" / "slurm.conf").exists():
            self.base_port = self.base_port or _free_ports(self.nodes + 1)
            self.configure()
            key = self.folder / "etc" / "munge.key"
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        self._start_munged()
        if self._pid("slurmctld") is None:
            self._daemon("slurmctld")
            self._wait("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))
        for index in range(1, self.nodes + 1):
            self.start_node(f"n{index}")
        self._wait("a slurmd", lambda: sum(state in UP for state in self.states()) == self.nodes)

    def configure(self, *, user_signal: bool = True, grace_seconds: int = 20) -> None:
        """Write the configuration, and make a running cluster take it.

        Args:
            user_signal: whether a preempted job gets its --signal. grace_seconds: from then to SIGTERM and SIGKILL.
        """
        folder, running = self.folder, self._pid("slurmctld") is not None
        port = self.base_port or self._configured_port()
        # Slurm binds to what the hostname resolves to; where that is not this machine's loopback, to every address.
        loopback = _resolves_to_loopback()
        text = CONFIGURATION.format(
            dir=folder,
            port=port,
            first=port + 1,
            last=port + self.nodes,
            nodes=self.nodes,
            gpus=self.gpus,
            listen="CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if loopback else "# listens on every address",
            user_signal="SlurmctldParameters=preempt_send_user_signal" if user_signal else "# no user signal",
            grace=grace_seconds,
        )
        (folder / "etc" / "slurm.conf").write_text(text)
        (folder / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for gpu in range(self.gpus):
            link = folder / "dev" / f"gpu{gpu}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")
        (folder / "etc" / "gres.conf").write_text(f"Name=gpu File={folder}/dev/gpu[0-{self.gpus - 1}]\n")
        if running:
            self.run("scontrol", "reconfigure")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd unless it runs."""
        if self._pid(f"slurmd-{name}") is None:
            (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
            self._daemon("slurmd", "-N", name)

    def kill_node(self, name: str) -> None:
        """Let a node die as by a power cut: its slurmd and everything that runs on it, by SIGKILL."""
        pid = self._pid(f"slurmd-{name}")
        for victim in [*([pid] if pid else []), *self._processes_of_node(name)]:
            _kill(victim, signal.SIGKILL)
        (self.folder / "run" / f"slurmd-{name}.pid").unlink(missing_ok=True)

    def states(self) -> list[str]:
        """Return the nodes' states (idle, mixed, allocated, ...)."""
        answer = self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T", check=False)
        return [state.rstrip("*") for state in answer.split()]

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's programs against this cluster and return its output.

        Raises:
            RuntimeError: it failed, and `check` is set.
        """
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, "PATH": PATH},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout

    def stop(self) -> None:
        """Cancel all jobs and end every process of this cluster."""
        if self._pid("slurmctld") is not None:
            jobs = self.run("squeue", "--noheader", "--format=%A", check=False).split()
            if jobs:
                self.run("scancel", *sorted(set(jobs)), check=False)
                deadline = time.monotonic() + 12
                while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
                    time.sleep(0.2)
        for name in [*(f"slurmd-n{i}" for i in range(1, self.nodes + 1)), "slurmctld"]:
            self._end(name)
        for pid in self._left_over():
            _kill(pid, signal.SIGKILL)
        self._end("munged")

    # ------------------------------------------------------------------ inside

    def _start_munged(self) -> None:
        if self._pid("munged") is not None:
            return
        run = self.folder / "run"
        for name in ("munge.socket", "munge.socket.lock"):
            (run / name).unlink(missing_ok=True)
        self._daemon(
            "munged", "--force", f"--key-file={self.folder}/etc/munge.key", f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid", f"--log-file={self.folder}/log/munged.log", f"--seed-file={run}/munge.seed",
            "--origin=127.0.0.1",
        )  # fmt: skip
        self._wait("munged", (run / "munge.socket").exists)

    def _daemon(self, *command: str) -> None:
        # A clean environment: nothing of the caller's must reach the jobs by this way.
        environment = {"PATH": PATH, "LANG": "C.UTF-8", **self.environment}
        with (self.folder / "log" / "start.log").open("ab") as log:
            subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                timeout=60, check=False,
            )  # fmt: skip

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {path}\n{path.read_text(errors='replace')[-1500:]}"
                    for path in sorted((self.folder / "log").glob("*.log"))
                )
                raise RuntimeError(f"{what} did not come up in {seconds:.0f} s\n{logs}")
            time.sleep(0.1)

    def _configured_port(self) -> int:
        lines = (self.folder / "etc" / "slurm.conf").read_text().splitlines()
        return int(next(line.split("=")[1] for line in lines if line.startswith("SlurmctldPort=")))

    def _pid(self, name: str) -> int | None:
        """Return the pid of a daemon of this cluster if it lives."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        program = name.partition("-")[0]
        return pid if _command_name(pid) == program else None

    def _end(self, name: str) -> None:
        pid = self._pid(name)
        if pid is None:
            return
        _kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while self._pid(name) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._pid(name) is not None:
            _kill(pid, signal.SIGKILL)

    def _processes_of_node(self, name: str) -> list[int]:
        log = f"{self.folder}/log/slurmd-{name}.log"
        steps = [pid for pid in _pids() if _command_name(pid) == "slurmstepd" and log in _open_files(pid)]
        wanted = f"SLURMD_NODENAME={name}"
        jobs = [
            pid
            for pid in _pids()
            if wanted in (variables := _variables(pid)) and f"SLURM_CONF={self.environment['SLURM_CONF']}" in variables
        ]
        return [*steps, *jobs]

    def _left_over(self) -> list[int]:
        return [pid for i in range(1, self.nodes + 1) for pid in self._processes_of_node(f"n{i}")]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _command_name(pid: int) -> str | None:
    """Return a process's name; None if it is dead or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, rest = text.split("(", 1)[1].rsplit(")", 1)
    return None if rest.split()[0] in "ZX" else name


def _variables(pid: int) -> set[str]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return set()


def _open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _resolves_to_loopback() -> bool:
    try:
        return socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
    except OSError:
        return False


def _free_ports(count: int) -> int:
    """Return the first of `count` free ports in a row, below those that the system hands out by itself."""
    for first in range(17100, 30000, 50):
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError("no free ports from 17100 on")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        print(__doc__, file=sys.stderr)
        return 2
    cluster = Cluster(Path(sys.argv[2]))
    if sys.argv[1] == "down":
        cluster.stop()
        return 0
    cluster.start()
    for name, value in cluster.environment.items():
        print(f"export {name}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
