"""`python -m vheatir` is the `vheatir` command."""

from vheatir.cli import main

raise SystemExit(main())
