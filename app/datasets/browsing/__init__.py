"""Seeing, searching and filtering rows: an index beside each set of rows, questions asked of it, and the pages."""
