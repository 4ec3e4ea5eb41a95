"""Near copies: shingles, MinHash signatures on disk, verified edges, which copy stays. Pure: no session, no pages."""
