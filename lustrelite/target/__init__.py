"""What every target does: transactions, reply records, commits, client records, recovery, ownership."""
