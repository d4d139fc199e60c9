"""``python -m ssamba`` is the command line."""

import sys

from ssamba.cli.main import main

sys.exit(main())
