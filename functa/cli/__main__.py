"""`python -m functa.cli COMMAND ...`: the `functa` command without an installed script."""

import sys

from functa.cli.main import main

sys.exit(main())
