# Each target does its own set-up, in one virtual environment made from hash-locked requirements.
.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin

# The first Python of at least 3.11; name another with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)

# With an NVIDIA driver, the service's set-up has the CUDA and cuDNN wheels too.
SERVICE := $(if $(shell nvidia-smi -L 2>/dev/null),cuda,service)

.PHONY: help run test soak bench test-docker test-cluster fuzz audit sbom check format setup-grpc setup-openvino setup-ray setup-training train lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

run: $(VENV)/.$(SERVICE)  ## start the service with the model in models/ (settings: leukoscope serve --help)
	@exec $(BIN)/leukoscope serve

test: $(VENV)/.dev  ## run all tests
	@$(BIN)/pytest

test-docker: $(VENV)/.dev  ## build and run the containers on a Docker engine, and test them
	@TEST_DOCKER=1 $(BIN)/pytest tests/docker

test-cluster: $(VENV)/.dev $(VENV)/.ray  ## test the service on a local Ray cluster of two nodes
	@TEST_CLUSTER=1 $(BIN)/pytest tests/cluster

# Atheris has wheels for Linux on x86-64 and Python 3.11 to 3.13 only, and wants an environment of its own.
FUZZ_SECONDS ?= 60
fuzz: .venv-fuzz/.ready  ## fuzz decoder and multipart parser with atheris, FUZZ_SECONDS each
	@for target in decode multipart; do \
		.venv-fuzz/bin/python -m tests.fuzz.run_atheris $$target .venv-fuzz/corpus/$$target \
			-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.venv-fuzz/$$target- -print_final_stats=1 || exit 1; done

.venv-fuzz/.ready: requirements/fuzz.txt
	@$(PYTHON) -m venv --clear .venv-fuzz
	@.venv-fuzz/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@touch $@

check: $(VENV)/.dev  ## check format, lint and types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy

setup-grpc: $(VENV)/.grpc  ## install what LEUKOSCOPE_GRPC_PORT needs
	@echo "LEUKOSCOPE_GRPC_PORT can be set"

setup-openvino: $(VENV)/.openvino  ## install what LEUKOSCOPE_CPU_ENGINE=openvino needs
	@echo "LEUKOSCOPE_CPU_ENGINE=openvino can be set"

setup-ray: $(VENV)/.ray  ## install what runs the service on a Ray cluster (docs/cluster.md)
	@echo "docs/cluster.md says how to go on"

setup-training: $(VENV)/.training  ## install what leukoscope-train needs
	@echo "$(BIN)/leukoscope-train is there"

# MODEL: efficientnet-lite0 or efficientnet-b3. START: a file with the relative's weights, where timm can't fetch them.
MODEL ?= efficientnet-lite0
TRAIN := $(BIN)/leukoscope-train
train: $(VENV)/.training  ## make MODEL anew from the cells in data/, judged on either fold, to runs/
	@$(TRAIN) index data
	@set -- $(if $(START),--start $(START)); for fold in 0 1; do \
		if [ -f training/configs/$(MODEL)-features.toml ]; then \
			$(TRAIN) distil training/configs/$(MODEL)-features.toml --split fold:$$fold $(if $(START),--start $(START)) || exit 1; \
			set -- --start runs/$(MODEL)-features-fold-$$fold/weights.safetensors; \
		fi; \
		$(TRAIN) probe training/configs/$(MODEL).toml --split fold:$$fold "$$@" || exit 1; \
		$(TRAIN) evaluate runs/$(MODEL)-fold-$$fold || exit 1; \
	done; \
	$(TRAIN) probe training/configs/$(MODEL).toml "$$@" && \
	$(TRAIN) evaluate runs/$(MODEL) --judged-by runs/$(MODEL)-fold-0 --judged-by runs/$(MODEL)-fold-1

MINUTES ?= 5
soak: $(VENV)/.dev  ## run mixed traffic with changes of the model for MINUTES, and reconcile the counters
	@$(BIN)/python -m tests.soak --minutes $(MINUTES)

# BENCH: options of python -m tests.bench, such as BENCH='--rounds 3 --only leukoscope fastapi'.
BENCH ?= --linear 10000
bench: $(VENV)/.dev .venv-bench/driver/.stamp  ## compare with other servers, on a quiet machine: runs/bench/bench.md, about an hour
	@.venv-bench/driver/bin/python -m tests.bench $(BENCH)

.venv-bench/driver/.stamp: tests/bench/requirements/driver.txt | $(VENV)/.created
	@$(PYTHON) -m venv .venv-bench/driver
	@.venv-bench/driver/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

format: $(VENV)/.dev  ## format, and mend what the linter can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

audit: .venv-audit/.ready  ## look every locked package up among known vulnerabilities (needs PyPI)
	@for lock in service cuda grpc otel ray training image-cpu image-cuda image-cpu-ray image-cuda-ray; do \
		echo "requirements/$$lock.txt"; \
		.venv-audit/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r requirements/$$lock.txt || exit 1; done

sbom: .venv-audit/.ready  ## write a CycloneDX bill of materials of the locks to dist/ (the images hold their own)
	@mkdir -p dist
	@for lock in service cuda; do \
		.venv-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
			--output-file dist/leukoscope-$$lock.cdx.json requirements/$$lock.txt && echo "dist/leukoscope-$$lock.cdx.json"; done

.venv-audit/.ready: requirements/audit.txt
	@$(PYTHON) -m venv --clear .venv-audit
	@.venv-audit/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt
	@touch $@

clean:  ## remove the virtual environments and all caches
	rm -rf $(VENV) .venv-fuzz .venv-audit .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python" >&2; exit 1; fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is needed (on Debian: apt install python3-venv)" >&2; exit 1; }
	@touch $@

# A stamp for each lock that was installed. All locks agree on every version, so they add up in one environment.
$(VENV)/.service $(VENV)/.cuda $(VENV)/.grpc $(VENV)/.openvino $(VENV)/.ray $(VENV)/.training $(VENV)/.dev: $(VENV)/.%: requirements/%.txt requirements/build.txt pyproject.toml | $(VENV)/.created
	@echo "Installing $<"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt -r $<
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# One resolution for everything, and each lock a part of it. --universal: one lock for all platforms and Pythons.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate
lock: $(VENV)/.dev  ## renew requirements/*.txt from pyproject.toml
	$(LOCK) --upgrade pyproject.toml --all-extras --group build -o $(VENV)/all.txt
	$(LOCK) --group build -c $(VENV)/all.txt -o requirements/build.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt -o requirements/service.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra cuda -o requirements/cuda.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra grpc -o requirements/grpc.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra openvino -o requirements/openvino.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra ray -o requirements/ray.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra training -o requirements/training.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra otel -o requirements/otel.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra training --extra otel --extra grpc --extra dev -o requirements/dev.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra otel --extra grpc --extra cuda -o requirements/image-cuda.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra otel --extra grpc --overrides requirements/image-cpu.overrides.in -o requirements/image-cpu.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra otel --extra cuda --extra ray -o requirements/image-cuda-ray.txt
	$(LOCK) pyproject.toml -c $(VENV)/all.txt --extra otel --extra ray --overrides requirements/image-cpu.overrides.in -o requirements/image-cpu-ray.txt
	$(LOCK) --upgrade --group audit -o requirements/audit.txt
	$(LOCK) --upgrade pyproject.toml -c $(VENV)/all.txt --group fuzz -o requirements/fuzz.txt
	for peer in driver fastapi litserve mosec bentoml; do \
		$(LOCK) --upgrade tests/bench/requirements/$$peer.in -o tests/bench/requirements/$$peer.txt || exit 1; done
