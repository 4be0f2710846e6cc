"""The `functa` command: one module per sub-command.

A sub-command is a module with

    DESCRIPTION   what `functa NAME --help` prints, examples included
    add_arguments(parser)
    run(args) -> exit status
    CONFIG_OVERRIDES = True, where `--config.KEY=VALUE` flags are accepted; they are args.config_overrides

`main.py` holds the table of sub-commands and turns user errors into one line and exit status 2.
"""
