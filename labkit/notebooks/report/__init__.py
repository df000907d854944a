"""The report of a run: page (the whole), notebook (a section), sanitize (foreign html)."""
