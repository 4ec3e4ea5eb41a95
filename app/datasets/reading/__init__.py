"""Readers: records and problems of every format, in bounded memory. They run in the limited child process only."""
