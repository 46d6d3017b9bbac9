# Every target sets up what it needs. The only requirements are Python 3.10 or 3.11, git and make.
.PHONY: audit-lock demo demo-network reference validate-deploy verify-demo test test-slow fuzz coverage package \
  benchmarks api check docs format lock setup clean

# A uv on the PATH is used; otherwise one is put into .tools, next to nothing of the system's.
UV := $(shell command -v uv 2>/dev/null || echo .tools/uv)
RUN := $(UV) run --frozen --quiet
export TF_CPP_MIN_LOG_LEVEL ?= 3
FUZZ_SECONDS ?= 15

# The demo starts over each time: its data are public, so nothing is lost with the old ledger.
demo: setup            ## train, attack, account and report on bundled handwritten digits
	rm -rf reports/digits
	$(RUN) privfed audit examples/digits.toml --out reports/digits

demo-network: setup    ## a server and 20 client processes on loopback, two of them killed; the same in simulation
	$(RUN) python scripts/demo_network.py --out reports/network

reference: setup       ## make the committed reference report anew, after a change of what reports hold
	rm -rf reports/reference
	$(RUN) privfed audit examples/digits.toml --out reports/reference
	rm -r reports/reference/checkpoints

verify-demo: setup     ## recompute what the demo's report claims
	$(RUN) privfed verify reports/digits

test: setup            ## the quick tests
	$(RUN) pytest -q -m "not slow" -n 2

test-slow: setup       ## the slow tests: whole trainings, kill -9, TFF side by side
	$(RUN) pytest -q -m slow -n 2 --dist loadgroup

# The fuzzer is pinned here, and no package of the project's.
fuzz: setup            ## every parser of the masking protocol, by coverage-guided inputs, for FUZZ_SECONDS each
	$(RUN) --with atheris==3.0.0 python tests/secagg/fuzz.py $(FUZZ_SECONDS)

coverage: setup        ## lines and branches of the masking protocol that its quick tests reach: 98 % at least
	$(RUN) pytest -q -m "not slow" -n 2 tests/secagg --cov=privfed.secagg --cov-branch --cov-fail-under=98 \
	  --cov-report=term-missing:skip-covered

package: setup         ## wheel and sdist, each installed in an empty environment and used there
	$(RUN) python scripts/smoke.py $(UV)

benchmarks: setup      ## every table of benchmarks/RESULTS.md anew, peers included; wants a quiet machine
	$(RUN) python benchmarks/everything.py

api: setup             ## list the public names anew, after a change of them that is meant
	$(RUN) python scripts/api_surface.py > tests/api_surface.txt

# Needed here alone, and no package of the project's.
validate-deploy: $(UV) ## the manifests of deploy/ against Kubernetes' schemas
	$(UV) run --no-project --with kubernetes-validate==1.37.0 --with setuptools kubernetes-validate deploy/kubernetes.yaml

# Pinned here alone, and no packages of the project's. A page that links nowhere, or a faulty docstring, fails it.
docs: setup            ## the documentation's site, into site/
	NO_MKDOCS_2_WARNING=1 $(RUN) --with mkdocs==1.6.1 --with mkdocs-material==9.8.2 --with mkdocstrings==1.0.8 \
	  --with mkdocstrings-python==2.0.11 --with latex2mathml==3.81.1 mkdocs build --quiet --strict

check: setup           ## format, lint, types
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: setup          ## put the code into shape
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

audit-lock: setup      ## look the locked packages up among known vulnerabilities, where the database can be reached
	$(RUN) python scripts/audit_lock.py

lock: $(UV)            ## resolve again, and write requirements.txt for people without uv
	$(UV) lock
	$(UV) export --frozen --quiet --no-dev --no-emit-project --no-hashes --output-file requirements.txt

setup: $(UV)           ## the environment in .venv, exactly as locked
	@$(UV) sync --frozen --quiet || { echo "setup: the packages could not be installed; see above" >&2; exit 1; }

.tools/uv:
	@echo "setup: installing uv into .tools" >&2
	@python3 scripts/bootstrap_uv.py .tools >/dev/null

clean:                 ## remove what the targets set up
	rm -rf .venv .tools site .mypy_cache .ruff_cache .hypothesis .coverage
