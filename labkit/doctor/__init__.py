"""Verdicts on a host, and causes for texts: the doctor changes nothing that it looks at."""
