"""What a run takes, counted before anything loads: operations, bytes and seconds.

May import: the ground floor, data, policies.
"""
