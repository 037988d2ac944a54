# `make help` says what there is. Everything is done by programs that can be read and run on their own.
PREFIX ?= /usr/local
DESTDIR ?=
# The Python that the installed programs run on.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
PYTEST_ARGS ?=
BENCH_ARGS ?=

export PREFIX DESTDIR

help:
	@echo "make demo        see it work: no token, no root, nothing to install; Ctrl-C ends it"
	@echo "make demo ONCE=1 the same, ends by itself"
	@echo "make test        prepare what the tests need, run them all (as root: on a booted machine too)"
	@echo "make bench       measure it, next to its floors and a service on aiohttp; BENCH_ARGS=--help has the options"
	@echo "make chaos       campaigns that kill, starve and confuse it, long; SEED=, CAMPAIGN=, ROUNDS="
	@echo "make crashes     the outbox in every state after a crash; CRASHES_ARGS=--help has the options"
	@echo "make install     install below PREFIX ($(PREFIX)), configuration below /etc; DESTDIR is honoured"
	@echo "make uninstall   remove what was installed; settings and data are kept"

demo:
	@$(PYTHON) tests/telegram/demo.py $(if $(ONCE),--once)

install uninstall:
	@./install.sh $@

test:
	@PYTHON=$(PYTHON) tests/prepare.sh
	@PATH="$$PATH:/usr/sbin:/sbin" .venv-test/bin/python -m pytest $(PYTEST_ARGS)

bench: .venv-bench/stamp
	@$(PYTHON) bench/bench.py $(BENCH_ARGS)

.venv-bench/stamp: bench/requirements.txt
	@rm -rf .venv-bench
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

chaos:
	@PYTHON=$(PYTHON) tests/prepare.sh
	@PATH="$$PATH:/usr/sbin:/sbin" PYTHONPATH=.:tests:tests/support .venv-test/bin/python -m chaos $(CAMPAIGN) --long \
		$(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS))

crashes:
	@PYTHON=$(PYTHON) tests/prepare.sh
	@PYTHONPATH=.:tests:tests/support .venv-test/bin/python -m crashes $(CRASHES_ARGS)

clean:
	rm -rf .venv-test .venv-bench .pytest_cache .ruff_cache .hypothesis

.PHONY: help demo install uninstall test chaos crashes bench clean
