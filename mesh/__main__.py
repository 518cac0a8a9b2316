"""`python -m mesh`: the same as the console script `mesh`."""

from mesh.cli import main

main()
