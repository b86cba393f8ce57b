"""`python -m node.worker`: see `node.worker.main`."""

from node.worker.main import main

if __name__ == "__main__":
    main()
