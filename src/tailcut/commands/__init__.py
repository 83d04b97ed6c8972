"""One file a command: `command` (a typer function) or `app` (a typer group). Imports rooms only when called."""
