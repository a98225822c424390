"""What a command line asks for: parsing, validation and the checks of settings.

May import: the ground floor, data, plan, policies, rewards, scenes.
"""
