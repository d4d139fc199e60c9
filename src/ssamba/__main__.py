"""``python -m ssamba`` is the command line."""

import sys

from ssamba.cli import main

sys.exit(main())
