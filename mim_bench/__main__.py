"""`python -m mim_bench`."""

from mim_bench.cli.main import main

if __name__ == "__main__":
    main()
