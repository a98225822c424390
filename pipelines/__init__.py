"""The programs of pararl; each runs from a checkout as ``python pipelines/<name>.py``.

May import: the ground floor, cli, data, evaluation, loop, plan, policies, pretraining, rewards, scenes, tracking.
"""
