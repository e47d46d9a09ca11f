"""``python -m lit_detect``."""

from lit_detect.cli import main

if __name__ == "__main__":
    main()
