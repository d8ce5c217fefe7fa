# Everything a developer runs. What each needs is installed into .venv/ the first time.
# dev/python finds a Python that is new enough; name another with PYTHON=/path/to/python3.
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test acceptance matrix lint format unit integration browser callbacks chaos chaos-short chaos-control bench bench-readme clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:  ## see it work: a real Airflow makes a video (KLING_API_KEY=sk_... for the real service, PORT=..., KEEP=1)
	@dev/python -m dev.environments --run dev.demo

test:  ## in minutes: lint, types, unit tests on the newest and the oldest Airflow, integration tests on the newest
	@dev/python -m dev.checks test

acceptance:  ## what takes longer, on the newest Airflow: the other unit tests, callbacks between real processes, the page in a real Chromium
	@dev/python -m dev.checks acceptance

matrix:  ## the unit tests on every supported minor version of Airflow, and with the lowest versions (ARGS=--rest: but the newest)
	@dev/python -m dev.checks matrix $(ARGS)

lint:  ## ruff and strict mypy
	@dev/python -m dev.checks lint

format:  ## let ruff format the code and mend what it can
	@dev/python -m dev.checks format

unit:  ## unit tests on the newest Airflow (ARGS="-k name" for pytest)
	@dev/python -m dev.checks unit $(ARGS)

integration:  ## integration tests, with real Airflow processes (ARGS as above)
	@dev/python -m dev.checks integration $(ARGS)

browser:  ## the page of videos in a real Chromium, on every minor version of Airflow that has it (ARGS as above)
	@dev/python -m dev.checks browser $(ARGS)

callbacks:  ## callbacks on PostgreSQL: two thousand at once, and while the database is down
	@dev/python -m dev.environments cluster --run pytest tests/integration -k postgresql -s

chaos:  ## kill a real Airflow cluster hundreds of times, and see that nothing is paid twice or lost (MINUTES=10, SEED=...)
	@dev/python -m dev.environments cluster --run tests.cluster.run

chaos-short:  ## the same on one machine without PostgreSQL and Redis, in minutes; then chaos-control
	@dev/python -m dev.environments --run tests.cluster.run --short
	@$(MAKE) --no-print-directory chaos-control

chaos-control:  ## the same without a ledger: has to pay twice, or the judge sees nothing
	@dev/python -m dev.environments --run tests.cluster.run --short --without-ledger

bench:  ## measure it beside other providers, about half an hour on a quiet machine (ONLY="queries imports")
	@dev/python -m dev.environments benchmarks --run benchmarks.run $(ONLY)

bench-readme:  ## write the tables of the last benchmarks into benchmarks/README.md
	@dev/python -m dev.environments benchmarks --run benchmarks.run --readme

clean:  ## remove the environments and all that was generated
	rm -rf .venv .demo .chaos benchmarks/results .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
