"""The programs of pararl; each runs from a checkout as ``python pipelines/<name>.py``."""
