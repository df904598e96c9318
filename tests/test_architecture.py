"""Who may import what.

    errors, system ◄─ schemas ◄─ artifacts ◄─ compiler │ runtime ◄─ edgeshard, its commands
                               ◄─ planner

The compiler, the planner and the runtime never import each other: they meet in files and messages.
The simulator in `edgeshard/simulate` drives the runtime's schedule over the planner's costs; of the
runtime it sees only that pure module and its values. `edgeshard/paper` plans and simulates with it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FREE = {"edgeshard.errors", "edgeshard.system", *sys.stdlib_module_names}
ALLOWED = {
    "schemas": {"jsonschema", "msgspec"},
    "artifacts": {"edgeshard.schemas", "msgspec", "onnx"},
    "planner": {"edgeshard.schemas", "numpy"},
    "compiler": {
        *("edgeshard.artifacts", "edgeshard.schemas"),
        *(
            "blake3",
            "gguf",
            "huggingface_hub",
            "llvmlite",
            "ml_dtypes",
            "msgspec",
            "numba",
            "numpy",
            "onnx",
            "optimum",
            "safetensors",
            "sentencepiece",
            "tokenizers",
            "torch",
        ),
        "transformers",
    },
    "runtime": {
        *("edgeshard.artifacts", "edgeshard.schemas"),
        *("jinja2", "msgspec", "numpy", "onnx", "onnxruntime", "prometheus_client", "psutil"),
        *("rich", "tokenizers", "zmq"),
    },
}
SIMULATE_ONLY = {"matplotlib", "simpy"}
ON_PAPER = ("paper", "simulate")
SIMULATOR_SEES = {
    "edgeshard.runtime.schedule",
    "edgeshard.runtime.schedule_events",
    "edgeshard.runtime.wire",
}
COMPILE_ONLY = {
    "accelerate",
    "blake3",
    "gguf",
    "huggingface_hub",
    "numba",
    "onnxscript",
    "optimum",
    "safetensors",
    "sentencepiece",
    "torch",
}
COMPILE_ONLY.add("transformers")
COMPILE_ONLY.add("edgeshard.compiler")
MAY_COMPILE = {
    "edgeshard/cache_ranges.py",
    "edgeshard/calibrate.py",
    "edgeshard/quality.py",
    "edgeshard/verify.py",
    "edgeshard/cli/compile.py",
}
POSIX_MODULES = {"ctypes", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}
POSIX_NAMES = {
    *("O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_SYNC", "SIGALRM", "SIGCHLD"),
    *("SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "WNOHANG"),
    *("alarm", "chown", "chroot", "epoll", "fchmod", "fchown", "fork", "forkpty", "getegid"),
    *("geteuid", "getgid", "getloadavg", "getpgid", "getpriority", "getsid", "getuid", "killpg"),
    *("kqueue", "lchown", "memfd_create", "mkfifo", "nice", "pidfd_open", "pipe2", "poll"),
    *("posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite", "pwritev"),
    *("sched_getaffinity", "sched_setaffinity", "sched_setscheduler", "sendfile", "setitimer"),
    *("setpriority", "setsid", "setuid", "statvfs", "sync", "sysconf", "uname", "wait", "wait4"),
}
LINUX_FOLDERS = ("/proc/", "/sys/", "ipc://")
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec"}


def _sources() -> list[Path]:
    """Every source file, once: the links in `edgeshard` are not followed."""
    own = list((ROOT / "edgeshard").glob("*.py"))
    own += (ROOT / "edgeshard" / "cli").rglob("*.py")
    own += (path for name in ON_PAPER for path in (ROOT / "edgeshard" / name).rglob("*.py"))
    return sorted([*own, *(path for name in ALLOWED for path in (ROOT / name).rglob("*.py"))])


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


def _modules(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # `from edgeshard import runtime` is an import of edgeshard.runtime.
            found |= (
                {f"{module}.{a.name}" for a in node.names} if module == "edgeshard" else {module}
            )
    return found


def imported(path: Path) -> set[str]:
    """What a file imports: `edgeshard.x` for our own, the top-level name for the rest."""
    return {
        ".".join(name.split(".")[: 2 if name.startswith("edgeshard.") else 1])
        for name in _modules(path)
    }


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = FREE | ALLOWED[package] | {f"edgeshard.{package}"}
    paths = sorted((ROOT / package).rglob("*.py"))

    assert len(paths) > 3
    assert {
        _name(path): imported(path) - allowed for path in paths if imported(path) - allowed
    } == {}


@pytest.mark.parametrize("package", ALLOWED)
def test_what_a_package_may_import_it_does(package: str) -> None:
    """Else the list above says more than is true."""
    found = {name for path in (ROOT / package).rglob("*.py") for name in imported(path)}

    assert ALLOWED[package] <= found


def test_one_file_calls_what_posix_alone_has() -> None:
    """Names that Python documents for Unix only, and the folders that Linux alone has."""
    users = {_name(path) for path in _sources() if not _name(path).startswith("compiler/")}
    users = {name for name in users if _posix_only(ROOT / name)}

    assert users == {"edgeshard/system.py"}


def _posix_only(path: Path) -> set[str]:
    found = imported(path) & POSIX_MODULES
    for node in _nodes(path):
        match node:
            case ast.Attribute(value=ast.Name(id="os" | "signal" | "select"), attr=name):
                found |= {name} & POSIX_NAMES
            case ast.Call(func=ast.Name("getattr" | "hasattr"), args=[_, ast.Constant(name), *_]):
                found |= {str(name)} & POSIX_NAMES
            case ast.Constant(value=str(text)) if text.startswith(LINUX_FOLDERS):
                found.add(text)
    return found


def test_errors_import_nothing() -> None:
    assert imported(ROOT / "edgeshard" / "errors.py") == {"__future__"}


def test_one_file_touches_zeromq() -> None:
    assert [_name(path) for path in _sources() if "zmq" in imported(path)] == ["runtime/channel.py"]


def test_only_the_compiler_needs_what_a_device_has_not() -> None:
    users = {_name(path) for path in _sources() if imported(path) & COMPILE_ONLY}

    assert {name for name in users if not name.startswith("compiler/")} <= MAY_COMPILE


def test_only_the_simulator_needs_its_libraries() -> None:
    users = {_name(path) for path in _sources() if imported(path) & SIMULATE_ONLY}

    folders = {name.rpartition("/")[0] for name in users}
    assert folders == {f"edgeshard/{name}" for name in ON_PAPER}


@pytest.mark.parametrize("name", ON_PAPER)
def test_what_runs_on_paper_has_costs_and_the_schedule_and_no_clock(name: str) -> None:
    allowed = {"edgeshard.planner", "edgeshard.schemas", "edgeshard.simulate", *SIMULATE_ONLY}
    allowed.add("edgeshard.chrome_trace")
    allowed |= {"edgeshard.paper", "numpy"} if name == "paper" else set()
    impure = {"datetime", "os", "socket", "subprocess", "threading", "time"}
    for path in (ROOT / "edgeshard" / name).rglob("*.py"):
        names = imported(path)
        assert names - FREE - allowed <= {"edgeshard.runtime"}, _name(path)
        assert names & impure == set(), _name(path)
        seen = {name for name in _modules(path) if name.startswith("edgeshard.runtime")}
        assert seen <= SIMULATOR_SEES, _name(path)


def test_protocol_cores_are_pure() -> None:
    """Events in, instructions out: no clock, no thread, no socket, no file."""
    impure = {"asyncio", "os", "pathlib", "random", "select", "socket", "subprocess", "threading"}
    impure |= {"time", "zmq"}
    for name in ("schedule", "schedule_events", "stage", "token_times", "tracing", "wire"):
        assert imported(ROOT / "runtime" / f"{name}.py") & impure == set(), name


def test_nothing_that_runs_code_from_data() -> None:
    for path in _sources():
        modules = {module.split(".")[0] for module in _modules(path)}
        assert modules & FORBIDDEN_MODULES == set(), _name(path)
        calls = {
            node.func.id
            for node in _nodes(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert calls & FORBIDDEN_CALLS == set(), _name(path)
        pickled = {
            keyword.arg
            for node in _nodes(path)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        }
        assert "allow_pickle" not in pickled, _name(path)
        attributes = {node.attr for node in _nodes(path) if isinstance(node, ast.Attribute)}
        assert attributes & {"recv_pyobj", "send_pyobj"} == set(), _name(path)


def test_imports_are_absolute() -> None:
    for path in _sources():
        levels = {node.level for node in _nodes(path) if isinstance(node, ast.ImportFrom)}
        assert levels <= {0}, _name(path)


def test_files_stay_small() -> None:
    lengths = {_name(path): len(path.read_text("utf-8").splitlines()) for path in _sources()}

    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_tests_that_run_alone_are_where_make_looks_for_them() -> None:
    mark = "mark." + "alone"
    found = [path for path in (ROOT / "tests").rglob("*.py") if mark in path.read_text("utf-8")]

    assert found
    assert {path.parent for path in found} == {ROOT / "tests" / "integration"}
