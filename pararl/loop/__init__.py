"""One run and its arms: the session, the run of one arm, its source of batches and its checkpoints.

May import: the ground floor, cli, data, evaluation, learner, rewards, rollout, tracking.
"""
