"""`python -P -m components.cli`: the console script, where only the interpreter is known."""

from components.cli.main import main

raise SystemExit(main())
