"""What programs may rely on: names, exit codes, and how little an import costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import edgeshard
from edgeshard import errors
from edgeshard.runtime import wire
from support.esc import esc


def _families() -> list[type[errors.EdgeShardError]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.EdgeShardError)
    ]


@pytest.mark.parametrize("name", edgeshard.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(edgeshard, name) is not None


def test_the_public_surface_is_this() -> None:
    """A change here is a change of the contract."""
    assert set(edgeshard.__all__) == {"AsyncClient", "Client", "Result", "Token", "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Server'"):
        edgeshard.Server  # noqa: B018  # looking it up is the test


@pytest.mark.parametrize("name", ["generate", "close", "connect"])
@pytest.mark.parametrize("client", ["Client", "AsyncClient"])
def test_both_clients_can_do_the_same(client: str, name: str) -> None:
    assert inspect.getdoc(getattr(getattr(edgeshard, client), name))


def test_every_family_of_errors_has_an_exit_code_of_its_own() -> None:
    codes = {family.__name__: family.exit_code for family in _families()}

    assert len(set(codes.values())) == len(codes) == 7
    assert all(code > 0 for code in codes.values())


def test_every_error_has_one_base() -> None:
    assert all(issubclass(family, errors.EdgeShardError) for family in _families())


def test_the_docstring_draws_every_family_with_its_code() -> None:
    drawing = errors.__doc__ or ""
    for family in _families():
        assert family.__name__ in drawing
        if family is not errors.EdgeShardError:
            line = next(line for line in drawing.splitlines() if family.__name__ in line)
            assert line.endswith(f"exit {family.exit_code}")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("edgeshard", ("zmq", "numpy", "torch", "onnxruntime")),
        ("edgeshard.errors", ("zmq", "numpy", "torch", "onnxruntime")),
        ("edgeshard.runtime.client", ("torch", "transformers", "onnxruntime")),
        ("edgeshard.runtime.worker", ("torch", "transformers")),
        ("edgeshard.planner", ("zmq", "torch", "onnxruntime")),
    ],
)
def test_an_import_costs_no_more_than_it_must(module: str, unwanted: tuple[str, ...]) -> None:
    program = f"import {module}, sys; print(*(set({unwanted!r}) & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == ""


def test_esc_says_its_version_and_the_protocols() -> None:
    done = esc("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"edgeshard {edgeshard.__version__}, protocol {wire.MAJOR}.{wire.MINOR}\n"
