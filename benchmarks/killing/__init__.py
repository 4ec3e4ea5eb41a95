"""Parts of the kill loop: the stack that is killed, the oracle that watches, the defect that must be found."""
