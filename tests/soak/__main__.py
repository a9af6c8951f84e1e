"""`python -m tests.soak --output_dir DIR`: see endurance.py."""

from tests.soak.endurance import main

main()
