"""`python -m hayless`: the command line."""

from hayless.cli.main import main

main()
