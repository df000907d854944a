"""The HTML report of a run: ``page`` makes the page, ``notebook`` one notebook's section."""
