# Every target sets up what it needs by itself; see tools/setup.sh.
.DEFAULT_GOAL := help
.PHONY: help setup agent test check bench soak demo layout clean distclean

# PYTHON in the environment says which Python this is made with
VENV := .venv/bin/python
C_FILES = $(wildcard stubs/agent/*.c stubs/agent/hosts/*.c)
C_FLAGS = -std=gnu11 -O2 -fPIC -Wall -Wextra -Werror
PYTEST_ARGS ?=
TIME ?= 600
KILLS ?= 1000

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile | expand -t 16

setup:  ## virtual environment, locked dependencies, the agent (root: missing Debian packages)
	@tools/setup.sh

agent: setup  ## compile what lives inside the target
	@$(VENV) -m stubs.build

demo:  ## the main job on screen: running programs are edited, their state goes on
	@tools/setup.sh --demo
	@$(VENV) demo/run.py

test:  ## all tests, on all processors; `make test PYTEST_ARGS="tests/elf -x -n0"` for some, on one
	@tools/setup.sh --tests
	@$(VENV) -m pytest -q -n auto --dist worksteal $(PYTEST_ARGS)

check: setup  ## ruff, pyright, the C with warnings as errors (ANALYZE=1: gcc's analyzer too)
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m pyright
	@for file in $(C_FILES); do echo "gcc $$file"; \
	    gcc $(C_FLAGS) $(if $(ANALYZE),-fanalyzer) -c -o /dev/null $$file || exit 1; done

bench:  ## benchmarks; results as JSON
	@tools/setup.sh --tests
	@$(VENV) -m tests.bench

soak:  ## edits, bad objects and kills for TIME=600 seconds, then KILLS=1000 of the daemon (SEED=n)
	@tools/setup.sh --tests
	@$(VENV) -m tests.soak --time $(TIME) --kills $(KILLS) $(if $(SEED),--seed $(SEED))

layout: setup  ## CONTRIBUTING.md's layout, from the modules' first sentences
	@$(VENV) tools/layout.py

clean:  ## what builds leave behind; .venv and .work stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -f stubs/agent/*.so stubs/agent/reloader-holder stubs/agent/reloader-host
	find . -name __pycache__ -not -path './.venv/*' -not -path './.work/*' -prune -exec rm -rf {} +

distclean: clean  ## everything that is not in the repository
	rm -rf .venv .work
