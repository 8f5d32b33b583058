.PHONY: demo test setup wheel clean

demo:  ## Make .venv, install, and run the demo: under five minutes after installation
	sh scripts/demo

test:  ## Make .venv, install, and run everything CI runs
	sh scripts/test

setup:  ## Make .venv with the tools for development
	sh scripts/setup dev

wheel: setup  ## Build dist/hayless-*.whl
	.venv/bin/python -m build --wheel

clean:  ## Remove what was made, but not runs/
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
