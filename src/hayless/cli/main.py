"""The command line: one verb, one question. Each verb is a thin file that imports its work when it is called."""

from __future__ import annotations

import json
import os
import sys

import typer

from hayless.core.errors import HaylessError

app = typer.Typer(
    name="hayless",
    help="Make language models cheaper to train, fine-tune, compress and run, and measure what every saving costs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _register() -> None:
    from hayless.cli import (
        bench,
        compare,
        data,
        demo,
        doctor,
        eval,
        generate,
        inspect,
        methods,
        modules,
        plan,
        report,
        run,
        serve,
        tokenize,
    )

    app.command("doctor")(doctor.doctor)
    app.command("methods")(methods.methods)
    app.add_typer(plan.app, name="plan")
    app.add_typer(data.app, name="data")
    app.add_typer(tokenize.app, name="tokenize")
    app.command("run")(run.run)
    app.command("compare")(compare.compare)
    app.command("report")(report.report)
    app.command("demo")(demo.demo)
    app.command("eval")(eval.evaluate)
    app.add_typer(bench.app, name="bench")
    app.add_typer(inspect.app, name="inspect")
    app.add_typer(modules.app, name="modules")
    app.command("generate")(generate.generate)
    app.command("serve")(serve.serve)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from hayless.version import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit 0, 1 (the work failed) or 2 (the request is wrong); no traceback for a mistake."""
    # Threads that spin while they wait for one another are tens of times slower once anything else runs (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _register()
    try:
        app()
    except HaylessError as error:
        fail(error)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


def fail(error: HaylessError) -> None:
    """Print an error (as JSON too, when `--json` was asked for) and leave with its exit code."""
    if "--json" in sys.argv:
        print(json.dumps({"error": error.message, "hint": error.hint, "exit_code": error.exit_code}))
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
