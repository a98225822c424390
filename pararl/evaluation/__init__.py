"""What a policy is worth: evaluations, examinations, summaries, studies and their intervals.

May import: the ground floor, cli, data, learner, policies, rewards, rollout, scenes, tracking.
"""
