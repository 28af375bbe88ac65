"""The command line: parse, call, print. No torch until a command needs it."""

from prunus.cli.app import app, main

__all__ = ["app", "main"]
