"""The `functa` command: one module per sub-command."""
