"""Which prompts are trained on: the user's files, task quotas and the curriculum.

May import: the ground floor, policies, scenes.
"""
