.PHONY: demo test bench tables setup wheel clean

demo:  ## Make .venv, install, and run the demo: under five minutes after installation
	sh scripts/demo

test:  ## Make .venv, install, and run everything CI runs
	sh scripts/test

bench: setup  ## Run benchmarks/specs/SPEC.py and write its results: make bench SPEC=train_cpu
	.venv/bin/python benchmarks/run.py $(SPEC)

tables: setup  ## Write the tables of README and docs from results, and list the goals that are missed
	.venv/bin/python benchmarks/tables.py

setup:  ## Make .venv with the tools for development
	sh scripts/setup dev

wheel: setup  ## Build dist/hayless-*.whl
	.venv/bin/python -m build --wheel

clean:  ## Remove what was made, but not runs/
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
