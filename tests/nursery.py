"""Commands as children of one warm process: what ``subprocess`` gives a test, without seconds of imports each time.

    done = nursery.run([sys.executable, "-m", "automodel_cli", "cfg.yaml"], cwd=folder, timeout=60)
    process = nursery.Popen([sys.executable, str(SCRIPT), "argument"], stdout=file, env=environment)

Both take and return what ``subprocess.run`` and ``subprocess.Popen`` do, as far as tests use it. The first call starts
a process that imports torch, transformers and ours, and has no thread; each command is forked from it with its own
arguments, environment, folder, session, files and signals, so it can be killed, waited for and compared like any other.

A command that starts others (``--nproc-per-node``, ``--nnodes``, ``sweep``, ``race``) has forks for them too.

Not for tests of what only a new Python can show: imports and their time, memory of a whole process, hash seeds, the
console script, torchrun, variables that a library reads when it is imported (see ENVIRONMENT). Each command has at
least one such test. Where there is no pidfd (not Linux) everything is a new Python.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT |= {"WANDB_MODE": "offline", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
ENVIRONMENT |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # of pyarrow
PRELOADED = (
    "torch",
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.checkpoint",
    "torch.distributed.elastic.agent.server.api",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.qwen2.modeling_qwen2",
    "pyarrow",
    "matplotlib.figure",
    "rich.progress",
    "typer.rich_utils",
    "automodel_cli.checkpoint.hf.export",
    *(
        f"automodel_cli.cli.{name}"
        for name in [
            *(f"commands.{one}" for one in ("evaluate", "export", "generate", "inspect_ckpt", "pretrain")),
            "preprocess.commands",
        ]
    ),
    "automodel_cli.launch.agent",
    "automodel_cli.launch.jobs",
    *(f"automodel_cli.models.{name}" for name in ("gpt2", "hf", "llama")),
    *(
        f"automodel_cli.recipes.{name}"
        for name in ("evaluation.likelihood", "preprocess.nanogpt", "preprocess.train_tokenizer", "pretrain")
    ),
)
POSSIBLE = hasattr(os, "pidfd_open")


# ------------------------------------------------------------------------------------------ for tests


class Process:
    """A running command; the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, connection: socket.socket, command: Sequence[str], stdout: IO[str] | None) -> None:
        self.args, self.stdout = command, stdout
        self.returncode: int | None = None
        self.max_rss_kib = 0
        self.ended_at = float("inf")  # time.monotonic()
        self._connection = connection
        self._lines = connection.makefile("r")
        self.pid: int = json.loads(self._lines.readline())["pid"]

    def poll(self) -> int | None:
        """The exit code, as subprocess gives it, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            end = json.loads(self._lines.readline())
            self.returncode, self.max_rss_kib, self.ended_at = end["code"], end["max_rss_kib"], end["at"]
            self._lines.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def Popen(
    command: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    text: bool = True,
    limits: Mapping[int, int] | None = None,
) -> Any:
    """Start ``[sys.executable, SCRIPT | -m MODULE | -c CODE, ARGUMENT...]``; output is text.

    It always has a session of its own, so ``os.killpg(process.pid, ...)`` ends all that it started. ``limits`` are
    for ``resource.setrlimit``.
    """
    limits = limits or {}
    if not POSSIBLE:
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, text=text,
            start_new_session=True, preexec_fn=lambda: _limit(list(limits.items())),
        )  # fmt: skip
    assert command[0] == sys.executable, f"only what Python runs: {command[0]}"
    ours, pipe_in = os.pipe() if stdout == subprocess.PIPE else (None, None)
    with contextlib.ExitStack() as opened:
        null = opened.enter_context(Path(os.devnull).open("r+"))
        if pipe_in is not None:
            opened.callback(os.close, pipe_in)
        out = _descriptor(stdout, 1, null) if pipe_in is None else pipe_in
        err = out if stderr == subprocess.STDOUT else _descriptor(stderr, 2, null)
        request = {
            "argv": [os.fspath(word) for word in command[1:]],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "limits": list(limits.items()),
        }
        connection = _ask(request, [_descriptor(stdin, 0, null), out, err])
    return Process(connection, command, None if ours is None else os.fdopen(ours, "r", errors="replace"))


def run(
    command: Sequence[str],
    *,
    capture_output: bool = False,
    text: bool = True,
    timeout: float = 300,
    check: bool = False,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of a command for :func:`Popen`; after the timeout it and its children are killed.

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
        subprocess.CalledProcessError: with ``check``, its exit code is not 0.
    """
    with contextlib.ExitStack() as opened:
        files: list[IO[str] | None] = []
        for given in (stdout, stderr):
            wanted = capture_output or given == subprocess.PIPE
            files.append(opened.enter_context(tempfile.TemporaryFile("w+", errors="replace")) if wanted else None)
        out, err = (file or given for file, given in zip(files, (stdout, stderr), strict=True))
        process = Popen(command, stdout=out, stderr=err, **more)
        try:
            code = process.wait(timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        said = [file and (file.seek(0), file.read())[1] for file in files]
    done = subprocess.CompletedProcess(command, code, *said)
    done.max_rss_kib = getattr(process, "max_rss_kib", 0)  # type: ignore[attr-defined]
    if check:
        done.check_returncode()
    return done


def _descriptor(given: int | IO[Any] | None, ours: int, null: IO[Any]) -> int:
    if given is None:
        return ours
    if given == subprocess.DEVNULL:
        return null.fileno()
    return given if isinstance(given, int) else given.fileno()


def collect_young_only() -> None:
    """Trainings here begin with a collection of young objects; one of all that imports have built takes 0.3 s each."""
    from automodel_cli.assembly import training

    names = ("disable", "enable", "freeze", "isenabled", "unfreeze")
    quick = types.SimpleNamespace(**{name: getattr(gc, name) for name in names})
    quick.collect = lambda generation=1: gc.collect(min(generation, 1))
    training.gc = quick  # type: ignore[assignment]


class _Nursery:
    """The warm process of this one; started by the first request."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="automodel-nursery-")
        self.address = str(Path(self._folder.name, "socket"))
        self.owner = os.getpid()
        ready = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, self.address, str(ready[1].fileno())],
            stdin=subprocess.PIPE,  # closed when this process ends, however it does
            stdout=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
            pass_fds=[ready[1].fileno()],
            start_new_session=True,
            cwd=ROOT,
        )
        ready[1].close()
        assert ready[0].recv(1), "the warm process did not start"
        ready[0].close()
        atexit.register(self.close)

    def close(self) -> None:
        if os.getpid() == self.owner:
            self.process.stdin.close()
            self.process.wait()
            self._folder.cleanup()


_warm: list[_Nursery] = []


def running() -> list[int]:
    """Process ids of the warm process, once a test has asked for one."""
    return [warm.process.pid for warm in _warm]


def _ask(request: dict[str, Any], descriptors: list[int]) -> socket.socket:
    if not _warm:
        _warm.append(_Nursery())
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_warm[0].address)
    _send(connection, request, descriptors)
    return connection


def _send(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    content = json.dumps(request).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], descriptors)
    connection.sendall(content)


# ------------------------------------------------------------------------------------------ the warm process


def _serve(address: str, ready: int) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    collect_young_only()
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads; only a process with one can be forked safely"
    gc.collect()
    gc.freeze()  # children leave these pages shared
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    os.write(ready, b"1")
    os.close(ready)
    _accept(listener)


def _accept(listener: socket.socket) -> None:
    """Fork what is asked for and report how it ends, until the owner is gone."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection = listener.accept()[0]
                request, descriptors = _received(connection)
                if (child := os.fork()) == 0:
                    selector.close()
                    for held in (listener, connection, *(other for _, other in running.values())):
                        held.close()
                    for pidfd in running:
                        os.close(pidfd)
                    _child(request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                _tell(connection, {"pid": child})
                pidfd = os.pidfd_open(child)
                running[pidfd] = child, connection
                selector.register(pidfd, selectors.EVENT_READ)
            elif key.fd in running:
                selector.unregister(key.fd)
                os.close(key.fd)
                child, connection = running.pop(key.fd)
                _, status, usage = os.wait4(child, 0)
                code = os.waitstatus_to_exitcode(status)
                _tell(connection, {"code": code, "max_rss_kib": usage.ru_maxrss, "at": time.monotonic()})
                connection.close()
            else:  # the owner has ended
                for child, _ in running.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
                os._exit(0)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request; an empty one when nobody asks any more."""
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb", buffering=0) as file:
        content = b""
        while len(content) < int.from_bytes(size, "big"):
            content += file.read(int.from_bytes(size, "big") - len(content))
        return json.loads(content or "{}"), list(descriptors)


def _tell(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        connection.sendall(json.dumps(message).encode() + b"\n")


def _child(request: dict[str, Any], descriptors: list[int]) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setsid()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        for descriptor in descriptors:
            os.close(descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        _limit(request["limits"])
        if any(word.startswith(("--nproc-per-node", "--nnodes", "sweep", "race")) for word in request["argv"]):
            _fork_workers()
        _execute(request["argv"])
        code = 0
    except SystemExit as stop:
        code = _exit_code(stop)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as Python itself ends
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    _leave(code)


def _limit(limits: Sequence[tuple[int, int]]) -> None:
    for what, value in limits:
        resource.setrlimit(what, (value, value))


def _execute(argv: list[str]) -> None:
    """What ``python argv...`` does."""
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    argv = argv[argv[0] == "-P" :]
    first, rest = argv[0], argv[1:]
    if first == "-m":
        sys.argv = rest
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _leave(code: int) -> None:
    """What the end of a Python does, but for taking everything apart."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


# ------------------------------------------------------------------------------------------ workers of a launcher

_PR_SET_CHILD_SUBREAPER = 36


class _Worker:
    """The ``subprocess.Popen`` of ``launch.workers`` and ``launch.jobs``, carried out by a fork of :func:`_seed`."""

    def __init__(
        self,
        seed: socket.socket,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes] | None,
        stderr: int | IO[bytes] | None,
        start_new_session: bool,
    ) -> None:
        stderr = stdout if stderr == subprocess.STDOUT else stderr
        assert command[0] == sys.executable and stdin == subprocess.DEVNULL and start_new_session
        self.returncode: int | None = None
        request = {"argv": list(command[1:]), "cwd": os.fspath(Path.cwd()), "env": dict(env), "limits": []}
        with Path(os.devnull).open("rb") as null:
            outputs = [_descriptor(stdout, 1, null), _descriptor(stderr, 2, null)]
            _send(seed, request, [null.fileno(), *outputs])
            self.pid = int.from_bytes(seed.recv(8), "big")

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _fork_workers() -> None:
    """Let this process fork its workers from a child that has but one thread, whatever threads it starts itself."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the orphans that the seed leaves are ours
    ours, theirs = socket.socketpair()
    launcher = os.getpid()
    if os.fork() == 0:
        ours.close()
        _seed(theirs, launcher)
    theirs.close()
    from automodel_cli.launch import jobs, workers

    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired")}
    forks = types.SimpleNamespace(Popen=functools.partial(_Worker, ours), **names)
    jobs.subprocess = workers.subprocess = forks  # type: ignore[assignment]


def _seed(connection: socket.socket, launcher: int) -> None:
    """Fork twice for each request: a process whose parent has ended is a child of the launcher."""
    while True:
        request, descriptors = _received(connection)
        if not request:
            os._exit(0)
        told, tell = os.pipe()
        if (between := os.fork()) == 0:
            if (worker := os.fork()) != 0:
                os.write(tell, worker.to_bytes(8, "big"))
                os._exit(0)
            for descriptor in (told, tell, connection.detach()):
                os.close(descriptor)
            while os.getppid() != launcher:
                time.sleep(0.001)
            Path("/proc/self/comm").write_text(f"rank {request['env'].get('RANK')}")
            _child(request, descriptors)
        os.waitpid(between, 0)  # only now is the worker a child of the launcher, which may wait for it at once
        connection.sendall(os.read(told, 8))
        for descriptor in (told, tell, *descriptors):
            os.close(descriptor)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
