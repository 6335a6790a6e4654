"""A real Slurm of this machine alone, for tests: munged, slurmctld and slurmd in one folder, all on loopback.

It needs Debian's packages slurm-wlm and munge, and root. ``with PrivateSlurm(folder) as slurm: subprocess.run([...],
env=slurm.environ)``; as a script it starts one, prints what to export, and ends it at Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
_CONFIG = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MinJobAge=300
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why it cannot be started here; None where it can."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "only root can start it"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class PrivateSlurm:
    """Three daemons, started on entry; ``environ`` makes Slurm's programs speak to them."""

    def __init__(self, folder: Path, cpus: int | None = None) -> None:
        self.folder, self._cpus = folder, cpus or os.cpu_count() or 1
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> PrivateSlurm:
        for name in ("spool", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        config = _CONFIG.format(folder=self.folder, host=host, ports=_free_ports(2), cpus=self._cpus)
        (self.folder / "slurm.conf").write_text(config)
        try:
            self._start_munge()
            self._start("slurmctld", "-D")
            self.start_node()
            self._wait_for_the_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_node(self) -> subprocess.Popen[bytes]:
        """slurmd, once more after it was killed."""
        return self._start("slurmd", "-D", "-N", socket.gethostname().partition(".")[0])

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = [f"--{name}={self.folder}/munge.{suffix}" for name, suffix in (
            ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
        )]  # fmt: skip
        self._start("munged", "--foreground", "--force", *files)
        _wait_until((self.folder / "munge.socket").exists, "munged")

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        program = _program(name)
        assert program is not None
        with (self.folder / f"{name}.out").open("ab") as out:
            daemon = subprocess.Popen([program, *options], env=self.environ, stdout=out, stderr=out)
        self._daemons.append(daemon)
        return daemon

    def _wait_for_the_node(self) -> None:
        def is_idle() -> bool:
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=self.environ, capture_output=True, text=True)
            return done.stdout.strip() == "idle"

        _wait_until(is_idle, f"slurmd (see {self.folder})")

    def wait_for_jobs(self, timeout_s: float = 120.0) -> None:
        """Until no job waits or runs."""

        def is_empty() -> bool:
            done = subprocess.run(["squeue", "-h"], env=self.environ, capture_output=True, text=True)
            return done.returncode == 0 and not done.stdout.strip()

        _wait_until(is_empty, "the jobs", timeout_s)

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


def _wait_until(happened, what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up, or to an end, in {timeout_s:.0f} s")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with PrivateSlurm(Path(sys.argv[1]).absolute()) as slurm, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={slurm.environ['SLURM_CONF']}", flush=True)
        while True:
            time.sleep(1)
