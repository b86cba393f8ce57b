"""`python -m node.worker`: see `node.worker.main`."""

import traceback

from node.worker.main import main
from node.worker.protocol import end_process

if __name__ == "__main__":
    try:
        main()
    except Exception:  # noqa: BLE001 - as Python itself would do, but for its crash on threads that still run
        traceback.print_exc()
        end_process(1)
