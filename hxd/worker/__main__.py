"""`python -m hxd.worker` is how the daemon starts a worker; people have no use for it."""

from hxd.worker.main import main

if __name__ == "__main__":
    main()
