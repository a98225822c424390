"""From scored rollouts to one update of the adapter: preferences, likelihoods, losses, the learner and its handle.

May import: the ground floor, policies, rollout.
"""
