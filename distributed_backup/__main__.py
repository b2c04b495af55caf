"""`python -m distributed_backup`: the same as `distributed-backup`."""

from distributed_backup.cli.app import main

main()
