"""``python -m afire_monai`` is the same as the console script ``afire``."""

from afire_monai.cli.main import main

if __name__ == "__main__":
    main()
