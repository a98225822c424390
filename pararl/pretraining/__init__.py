"""How the embedded policies are made: recipes, and the state of a training that can go on.

May import: the ground floor, policies, scenes.
"""
