# make demo        set up, then show three GL contexts of which one dies; VM=1 does it with a real QEMU and a Debian guest
# make test        set up, then all checks and all tests; TESTS='tests/test_cli.py -x' gives pytest other arguments
# make bench       set up, then measure side by side with the peers; BENCH='clients --quick' gives python -m bench arguments
# make piglit      set up, then run a part of piglit through isorend and through virgl_test_server, and compare
# make fuzz        set up, then fuzz each target for a minute; FUZZ='virtqueue --seconds 3600' gives python -m tests.fuzz arguments
# make soak        set up, then half an hour of programs that come, go and die; SOAK='--minutes 600' gives python -m tests.soak arguments
# make lint        ruff and mypy (the C code is checked by every build: -Wall -Wextra -Werror)
# make setup       Debian packages, .venv, native modules
# make clean       remove what was built here (not .venv, not the cached VM lab)

PYTHON := .venv/bin/python
TESTS ?= tests
BENCH ?=
PIGLIT ?=
SOAK ?=
FUZZ ?=
DEMO_OUT ?= demo-out

.PHONY: demo test bench piglit fuzz soak lint setup clean

demo:
	@bash .ci/setup $(if $(VM),vm)
	.venv/bin/isorend demo --out $(DEMO_OUT) $(if $(VM),--vm)

test:
	@bash .ci/setup vm
	@$(MAKE) --no-print-directory lint
	$(PYTHON) -m pytest $(TESTS)

bench:
	@bash .ci/setup vm bench
	$(PYTHON) -m bench $(BENCH)

piglit:
	@bash .ci/setup
	$(PYTHON) -m tests.piglit $(PIGLIT)

fuzz:
	@bash .ci/setup
	$(PYTHON) -m tests.fuzz $(FUZZ)

soak:
	@bash .ci/setup
	$(PYTHON) -m tests.soak $(SOAK)

lint:
	.venv/bin/ruff check --quiet
	.venv/bin/mypy --no-error-summary

setup:
	@bash .ci/setup

clean:
	rm -rf build demo-out bench/results tests/vm/out native/_*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f .venv/set-up-native
