# Each target makes the environment that it needs. Nothing is installed outside .venv.
PYTHON ?= python3
TORCH ?= cpu
EXTRAS ?= train,server,dev
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export PYTHON TORCH EXTRAS
# `mlflow ui` reports to its makers unless told otherwise; muxrec tells it itself.
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: demo test check ui bench-train bench-load bench-prepare bench-serve bench-tracking env format lock clean
.DEFAULT_GOAL := demo

demo: env
	$(BIN)/python -m recsys.cli.demo

# One thread a worker: two workers that each start a thread a core only wait for each other.
test: env
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -q

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/codespell $$(git ls-files --cached --others --exclude-standard)
	$(BIN)/python -m pip check

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ui: env
	$(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

# On a machine that does nothing else; benchmarks/README.md. For example, ARGS="--sizes 1e5,1e6" goes to the command.
bench-train bench-load bench-prepare bench-serve bench-tracking: bench-%: env
	$(BIN)/python -m benchmarks.$* --out work/benchmarks/$*.md $(ARGS)

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.sh third_party/fbgemm-gpu-shim/pyproject.toml
	@scripts/install.sh $(VENV)
	@touch $@

# Resolve all versions anew in a separate environment, and write them down.
lock:
	rm -rf work/lock
	CONSTRAINTS=/dev/null TORCH=cpu EXTRAS=train,server,ray,dev scripts/install.sh work/lock
	grep '^#' constraints.txt > work/constraints.txt
	work/lock/bin/pip freeze --exclude-editable | grep -viE '^(#|torch=|fbgemm)' >> work/constraints.txt
	mv work/constraints.txt constraints.txt

# Datasets and runs below work/ stay.
clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
