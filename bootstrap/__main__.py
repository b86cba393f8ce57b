"""`python -m bootstrap` is `mesh-bootstrap`."""

import sys

from bootstrap.cli import main

sys.exit(main())
