"""What each family of policies adds: its layouts, its settings, and how its parts are composed."""
